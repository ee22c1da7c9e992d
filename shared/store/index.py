"""The state of the store at one revision: prompts, their versions and aliases.

Immutable: applying a commit returns a new state. The state depends on the log alone: no input/output, no clock.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from shared.errors import DamagedBlob, NotFound
from shared.names import PromptReference, version_name
from shared.store.commit import AliasMoved, AliasTarget, Commit, VersionDeleted, VersionPublished, VersionSummary

MAX_TOMBSTONES = 1000


@dataclass(frozen=True, slots=True)
class VersionRecord:
    """One published version. `created_at` is the time of its commit, `revision` the commit's number."""

    prompt: str
    version: int
    digest: str
    size_bytes: int
    job: str
    created_at: str
    revision: int
    summary: VersionSummary

    @property
    def name(self) -> str:
        """Resource name: `prompts/{prompt}/versions/{version}`."""
        return version_name(self.prompt, self.version)

    @property
    def metrics(self) -> Mapping[str, float]:
        """Metrics from the version's summary."""
        return self.summary.metrics


@dataclass(frozen=True, slots=True)
class Alias:
    """A movable name for one version, or for several versions that share the traffic by weight."""

    name: str
    targets: tuple[AliasTarget, ...]
    moved_at: str
    revision: int

    def __str__(self) -> str:
        return render_targets(self.targets)

    def pick(self, prompt: str, routing_key: str = "") -> int:
        """The version for a routing key: the same key gets the same version while the weights stay the same.

        Weighted rendezvous hashing (Thaler and Ravishankar 1998): a change of weights moves as few keys as possible.
        Without a key, each call picks a version at random by weight.
        """
        if len(self.targets) == 1:
            return self.targets[0].version
        return max(self.targets, key=lambda target: _score(prompt, target, routing_key)).version


@dataclass(frozen=True, slots=True)
class Tombstone:
    """A deleted version: its job may not publish again; its blob is kept until replicas have noticed the deletion."""

    version: int
    job: str
    digest: str
    deleted_at: str


@dataclass(frozen=True, slots=True)
class PromptRecord:
    """One prompt. `latest_version` is the highest number ever used, even if that version is deleted.

    The maps are read-only and in order of insertion.
    """

    name: str
    latest_version: int = 0
    versions: Mapping[int, VersionRecord] = field(default_factory=dict)
    aliases: Mapping[str, Alias] = field(default_factory=dict)
    tombstones: tuple[Tombstone, ...] = ()

    def version(self, number: int) -> VersionRecord:
        """The version with this number. Raises NotFound."""
        try:
            return self.versions[number]
        except KeyError:
            raise NotFound("version", version_name(self.name, number), f"the latest is {self.latest_version}") from None

    def aliases_of(self, number: int) -> list[str]:
        """Names of the aliases that name this version, sorted."""
        return sorted(
            name for name, alias in self.aliases.items() if any(target.version == number for target in alias.targets)
        )

    def version_of_job(self, job: str) -> VersionRecord | None:
        """The version that this job published, unless it is deleted."""
        return next((record for record in self.versions.values() if record.job == job), None)

    def tombstone_of_job(self, job: str) -> Tombstone | None:
        """The deleted version that this job published."""
        return next((stone for stone in self.tombstones if stone.job == job), None)


@dataclass(frozen=True, slots=True)
class StoreIndex:
    """All prompts at `revision`. Immutable, so it can be kept and shared."""

    revision: int = 0
    prompts: Mapping[str, PromptRecord] = field(default_factory=dict)

    def prompt(self, name: str) -> PromptRecord:
        """The prompt with this name, even if all its versions are deleted. Raises NotFound."""
        try:
            return self.prompts[name]
        except KeyError:
            raise NotFound("prompt", name) from None

    def resolve(self, reference: PromptReference, routing_key: str = "") -> VersionRecord:
        """The version that a reference means at this revision. Raises NotFound for the prompt, alias or version."""
        prompt = self.prompt(reference.prompt)
        if reference.version is not None:
            return prompt.version(reference.version)
        alias = prompt.aliases.get(reference.alias or "")
        if alias is None:
            known = ", ".join(sorted(prompt.aliases)) or "none"
            raise NotFound("alias", str(reference), f"aliases of {reference.prompt}: {known}")
        return prompt.version(alias.pick(prompt.name, routing_key))

    def current_version(self, prompt: str, alias: str) -> VersionRecord | None:
        """The version that an alias names (the one with the largest weight); None if there is no such alias."""
        record = self.prompts.get(prompt)
        named = record.aliases.get(alias) if record else None
        if record is None or named is None:
            return None
        return record.version(max(named.targets, key=lambda target: (target.weight, target.version)).version)

    def versions(self) -> Iterator[VersionRecord]:
        """All versions of all prompts."""
        for prompt in self.prompts.values():
            yield from prompt.versions.values()

    def list_prompts(self, after: str = "", limit: int = 100, name_prefix: str = "") -> list[PromptRecord]:
        """A page of the prompts that have a version, by name; `after` is the last name of the previous page."""
        found: list[PromptRecord] = []
        for name in sorted(name for name in self.prompts if name > after and name.startswith(name_prefix)):
            if len(found) == limit:
                break
            if (prompt := self.prompts[name]).versions:
                found.append(prompt)
        return found

    def list_versions(self, prompt: str, below: int = 0, limit: int = 100) -> list[VersionRecord]:
        """A page of versions, newest first; `below` is the last number of the previous page. Raises NotFound."""
        versions = self.prompt(prompt).versions
        numbers = sorted((number for number in versions if not below or number < below), reverse=True)
        return [versions[number] for number in numbers[:limit]]

    def apply(self, commit: Commit) -> StoreIndex:
        """The state after `commit`. Raises DamagedBlob if the commit does not fit this state (a tampered log)."""
        if commit.revision != self.revision + 1:
            raise DamagedBlob(f"log entry {commit.revision} can't follow revision {self.revision}")
        changed: dict[str, PromptRecord] = {}
        for op in commit.ops:
            prompt = changed.get(op.prompt) or self.prompts.get(op.prompt) or PromptRecord(op.prompt)
            changed[op.prompt] = _apply(prompt, op, commit)
        return StoreIndex(commit.revision, MappingProxyType({**self.prompts, **changed}))

    def check_integrity(self) -> None:
        """Raises DamagedBlob if an alias names a missing version, or a version number exceeds its prompt's latest."""
        for prompt in self.prompts.values():
            if max(prompt.versions, default=0) > prompt.latest_version:
                raise DamagedBlob(f"prompt {prompt.name} has a version above its latest")
            for alias in prompt.aliases.values():
                if not alias.targets or any(target.version not in prompt.versions for target in alias.targets):
                    raise DamagedBlob(f"alias {prompt.name}@{alias.name} names a version that does not exist")


def render_targets(targets: Sequence[AliasTarget]) -> str:
    """`3` for one version, `3=90,4=10` for weighted ones, `none` for no alias."""
    if len(targets) == 1:
        return str(targets[0].version)
    return ",".join(f"{target.version}={target.weight}" for target in targets) or "none"


def _apply(prompt: PromptRecord, op: VersionPublished | AliasMoved | VersionDeleted, commit: Commit) -> PromptRecord:
    if isinstance(op, VersionPublished):
        return _publish(prompt, op, commit)
    if isinstance(op, AliasMoved):
        return _move_alias(prompt, op, commit)
    return _delete(prompt, op, commit)


def _publish(prompt: PromptRecord, op: VersionPublished, commit: Commit) -> PromptRecord:
    if op.version != prompt.latest_version + 1:
        raise DamagedBlob(
            f"log entry {commit.revision} publishes {op.prompt} version {op.version} after {prompt.latest_version}"
        )
    record = VersionRecord(
        prompt.name, op.version, op.digest, op.size_bytes, op.job, commit.time, commit.revision, op.summary
    )
    return replace(
        prompt, latest_version=op.version, versions=MappingProxyType({**prompt.versions, op.version: record})
    )


def _move_alias(prompt: PromptRecord, op: AliasMoved, commit: Commit) -> PromptRecord:
    aliases = {name: alias for name, alias in prompt.aliases.items() if name != op.alias}
    if any(target.version not in prompt.versions for target in op.targets):
        raise DamagedBlob(f"log entry {commit.revision} moves {op.prompt}@{op.alias} to a version that does not exist")
    if op.targets:
        aliases[op.alias] = Alias(op.alias, op.targets, commit.time, commit.revision)
    return replace(prompt, aliases=MappingProxyType(aliases))


def _delete(prompt: PromptRecord, op: VersionDeleted, commit: Commit) -> PromptRecord:
    if prompt.aliases_of(op.version) or op.version not in prompt.versions:
        raise DamagedBlob(
            f"log entry {commit.revision} deletes {op.prompt} version {op.version}, which is aliased or does not exist"
        )
    versions = dict(prompt.versions)
    removed = versions.pop(op.version)
    stone = Tombstone(removed.version, removed.job, removed.digest, commit.time)
    return replace(
        prompt, versions=MappingProxyType(versions), tombstones=(*prompt.tombstones, stone)[-MAX_TOMBSTONES:]
    )


def _score(prompt: str, target: AliasTarget, routing_key: str) -> float:
    chance = _uniform(f"{prompt}\0{target.version}\0{routing_key}") if routing_key else random.uniform(1e-12, 1 - 1e-12)
    return -target.weight / math.log(chance)


def _uniform(text: str) -> float:
    """A pseudo-random number in (0, 1) that depends only on the text."""
    number = int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:6], "big")
    return (number + 0.5) / 2**48
