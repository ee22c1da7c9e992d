"""The state of the store at one revision: prompts, their versions and aliases. Immutable; a commit makes the next one.

Everything here is a pure function of the log: no input/output, no clock.
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
    """One published version as the index knows it. `created_at` is the time of the commit, `revision` its number."""

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
        return version_name(self.prompt, self.version)

    @property
    def metrics(self) -> Mapping[str, float]:
        return self.summary.metrics


@dataclass(frozen=True, slots=True)
class Alias:
    """A movable name for a version, or for several that share its traffic by weight."""

    name: str
    targets: tuple[AliasTarget, ...]
    moved_at: str
    revision: int

    def __str__(self) -> str:
        return render_targets(self.targets)

    def pick(self, prompt: str, routing_key: str = "") -> int:
        """The version for this key: the same for the same key, as long as the weights stay.

        Weighted rendezvous hashing (Thaler and Ravishankar 1998): when weights change, only keys move that must.
        Without a key each call draws anew.
        """
        if len(self.targets) == 1:
            return self.targets[0].version
        return max(self.targets, key=lambda target: _score(prompt, target, routing_key)).version


@dataclass(frozen=True, slots=True)
class Tombstone:
    """A deleted version: its job may not publish again, and its blob is kept for those who have not heard yet."""

    version: int
    job: str
    digest: str
    deleted_at: str


@dataclass(frozen=True, slots=True)
class PromptRecord:
    """One prompt. `latest_version` is the highest number ever given, deleted or not; maps are read-only and sorted as
    they grew.
    """

    name: str
    latest_version: int = 0
    versions: Mapping[int, VersionRecord] = field(default_factory=dict)
    aliases: Mapping[str, Alias] = field(default_factory=dict)
    tombstones: tuple[Tombstone, ...] = ()

    def version(self, number: int) -> VersionRecord:
        """Raises NotFound."""
        try:
            return self.versions[number]
        except KeyError:
            raise NotFound("version", version_name(self.name, number), f"the latest is {self.latest_version}") from None

    def aliases_of(self, number: int) -> list[str]:
        return sorted(
            name for name, alias in self.aliases.items() if any(target.version == number for target in alias.targets)
        )

    def version_of_job(self, job: str) -> VersionRecord | None:
        return next((record for record in self.versions.values() if record.job == job), None)

    def tombstone_of_job(self, job: str) -> Tombstone | None:
        return next((stone for stone in self.tombstones if stone.job == job), None)


@dataclass(frozen=True, slots=True)
class StoreIndex:
    """Every prompt at `revision`. Hold one as long as you like; it never changes."""

    revision: int = 0
    prompts: Mapping[str, PromptRecord] = field(default_factory=dict)

    def prompt(self, name: str) -> PromptRecord:
        """Raises NotFound. A prompt whose versions are all deleted is still known, by its last number."""
        try:
            return self.prompts[name]
        except KeyError:
            raise NotFound("prompt", name) from None

    def resolve(self, reference: PromptReference, routing_key: str = "") -> VersionRecord:
        """The version that a reference means now. Raises NotFound naming the prompt, alias or version."""
        prompt = self.prompt(reference.prompt)
        if reference.version is not None:
            return prompt.version(reference.version)
        alias = prompt.aliases.get(reference.alias or "")
        if alias is None:
            known = ", ".join(sorted(prompt.aliases)) or "none"
            raise NotFound("alias", str(reference), f"aliases of {reference.prompt}: {known}")
        return prompt.version(alias.pick(prompt.name, routing_key))

    def current_version(self, prompt: str, alias: str) -> VersionRecord | None:
        """What an alias names, of several the one with most of the traffic; None if there is no such alias."""
        record = self.prompts.get(prompt)
        named = record.aliases.get(alias) if record else None
        if record is None or named is None:
            return None
        return record.version(max(named.targets, key=lambda target: (target.weight, target.version)).version)

    def versions(self) -> Iterator[VersionRecord]:
        for prompt in self.prompts.values():
            yield from prompt.versions.values()

    def list_prompts(self, after: str = "", limit: int = 100, name_prefix: str = "") -> list[PromptRecord]:
        """A page in the order of names, of those with at least one version; the next page starts after the last name."""
        found: list[PromptRecord] = []
        for name in sorted(name for name in self.prompts if name > after and name.startswith(name_prefix)):
            if len(found) == limit:
                break
            if (prompt := self.prompts[name]).versions:
                found.append(prompt)
        return found

    def list_versions(self, prompt: str, below: int = 0, limit: int = 100) -> list[VersionRecord]:
        """A page, newest first; the next page is `below` the last number. Raises NotFound."""
        versions = self.prompt(prompt).versions
        numbers = sorted((number for number in versions if not below or number < below), reverse=True)
        return [versions[number] for number in numbers[:limit]]

    def apply(self, commit: Commit) -> StoreIndex:
        """The state after `commit`. Raises DamagedBlob if it can't follow on this state: then the log has been tampered
        with.
        """
        if commit.revision != self.revision + 1:
            raise DamagedBlob(f"log entry {commit.revision} can't follow revision {self.revision}")
        changed: dict[str, PromptRecord] = {}
        for op in commit.ops:
            prompt = changed.get(op.prompt) or self.prompts.get(op.prompt) or PromptRecord(op.prompt)
            changed[op.prompt] = _apply(prompt, op, commit)
        return StoreIndex(commit.revision, MappingProxyType({**self.prompts, **changed}))

    def check_integrity(self) -> None:
        """Every alias names living versions, every number was given. Raises DamagedBlob."""
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
    gone = versions.pop(op.version)
    stone = Tombstone(gone.version, gone.job, gone.digest, commit.time)
    return replace(
        prompt, versions=MappingProxyType(versions), tombstones=(*prompt.tombstones, stone)[-MAX_TOMBSTONES:]
    )


def _score(prompt: str, target: AliasTarget, routing_key: str) -> float:
    chance = _uniform(f"{prompt}\0{target.version}\0{routing_key}") if routing_key else random.uniform(1e-12, 1 - 1e-12)
    return -target.weight / math.log(chance)


def _uniform(text: str) -> float:
    """A number in (0, 1), the same for the same text in every process."""
    number = int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:6], "big")
    return (number + 0.5) / 2**48
