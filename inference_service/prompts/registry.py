"""The state of versions on this replica: known, loaded, quarantined, in use, and the target of each alias.

Plain data on the event loop without input, output or waiting. An alias moves when all its new targets can serve. Until
then it keeps its previous targets, permanently if a new one is quarantined. The index and each alias change by one
assignment, so a request never sees an intermediate state.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import islice

from inference_service.prompts.version import (
    Quarantine,
    RefusalReason,
    ServableVersion,
    VersionKey,
    VersionStatus,
    publish_to_served_seconds,
)
from shared import invariants
from shared.caller import EVERYBODY, Caller
from shared.errors import PreconditionFailed
from shared.invariants import Invariant
from shared.names import PromptReference
from shared.store.index import Alias, StoreIndex, VersionRecord
from shared.store.view import visible_index
from shared.values.enums import LoadedState

log = logging.getLogger(__name__)


@dataclass
class _Entry:
    """A loaded version. `holds` counts its requests; `retired` versions are unloaded after the last of them."""

    version: ServableVersion
    holds: int = 0
    retired: bool = False


@dataclass
class PromptRegistry:
    """All versions on one replica. `unload` gets each prefix id to unload; `max_loaded`: most versions kept loaded."""

    unload: Callable[[str], None]
    max_loaded: int = 4096
    first_revision: int | None = None
    """The revision that this replica started from; versions after it are timed from publish to served."""
    index: StoreIndex = field(default_factory=StoreIndex)
    """The store's state at the last applied revision."""
    _loaded: OrderedDict[VersionKey, _Entry] = field(default_factory=OrderedDict)
    _retired: dict[str, _Entry] = field(default_factory=dict)
    _checked: dict[VersionKey, float | None] = field(default_factory=dict)
    """Checked versions, with the seconds from publication to serving; None: older than this replica."""
    _quarantined: dict[VersionKey, Quarantine] = field(default_factory=dict)
    _serving: dict[tuple[str, str], Alias] = field(default_factory=dict)
    _deferred: dict[tuple[str, str], Alias] = field(default_factory=dict)
    """Aliases, as they were at the start, whose versions load on their first request; moved aliases no longer match."""

    @property
    def num_loaded(self) -> int:
        """Number of loaded versions."""
        return len(self._loaded)

    @property
    def num_quarantined(self) -> int:
        """Number of quarantined versions."""
        return len(self._quarantined)

    @property
    def num_known(self) -> int:
        """Number of versions in the store."""
        return sum(len(prompt.versions) for prompt in self.index.prompts.values())

    @property
    def num_aliases_behind(self) -> int:
        """Aliases that serve something else than the store says: a new target is loading or was refused.

        Aliases of other models' prompts and those that wait for their first request don't count.
        """
        aliases = ((name, alias) for name, prompt in self.index.prompts.items() for alias in prompt.aliases.values())
        named = [(name, alias) for name, alias in aliases if not self._is_deferred(name, alias)]
        behind = [(name, alias) for name, alias in named if self._serving.get((name, alias.name)) is not alias]
        return sum(
            not any(self._is_foreign((name, target.version)) for target in alias.targets) for name, alias in behind
        )

    # ---- for requests ----

    def resolve(self, reference: PromptReference, routing_key: str = "", caller: Caller = EVERYBODY) -> VersionRecord:
        """The version to which a reference resolves on this replica now.

        Raises NotFound naming prompt, alias or version, also for a prompt that the caller may not use;
        PreconditionFailed with the reason for a version that is quarantined.
        """
        record = visible_index(self.index, caller).resolve(reference, routing_key)
        if reference.alias is not None and (serving := self._serving.get((reference.prompt, reference.alias))):
            record = self.index.prompt(reference.prompt).version(serving.pick(reference.prompt, routing_key))
        if quarantine := self._quarantined.get((record.prompt, record.version)):
            raise PreconditionFailed(
                f"{record.name} is quarantined on this replica: {quarantine.message}",
                version=record.name,
                reason=quarantine.reason,
            )
        return record

    @contextmanager
    def hold(self, record: VersionRecord) -> Iterator[ServableVersion | None]:
        """Keep a loaded version from being unloaded until the end of the block; yields None if it is not loaded."""
        key = (record.prompt, record.version)
        entry = self._loaded.get(key)
        if entry is None or entry.version.record.digest != record.digest:
            yield None
            return
        self._loaded.move_to_end(key)
        entry.holds += 1
        try:
            yield entry.version
        finally:
            entry.holds -= 1
            if entry.retired and not entry.holds:
                self._retired.pop(entry.version.prefix_id, None)
                self.unload(entry.version.prefix_id)

    # ---- for the watcher ----

    def update(self, index: StoreIndex) -> list[VersionRecord]:
        """Apply another revision of the store; aliases move if their targets can serve.

        Returns the new versions in the order of publication.
        """
        before, self.index = self.index, index
        invariants.check(
            index.revision >= before.revision, Invariant.REVISION_GROWS, before=before.revision, after=index.revision
        )
        if self.first_revision is None:
            self.first_revision = index.revision
        fresh: list[VersionRecord] = []
        for name in {**before.prompts, **index.prompts}:
            if before.prompts.get(name) is index.prompts.get(name):
                continue
            old = before.prompts[name].versions if name in before.prompts else {}
            new = index.prompts[name].versions if name in index.prompts else {}
            fresh += [
                record for number, record in new.items() if number not in old or old[number].digest != record.digest
            ]
            for number, record in old.items():
                if number not in new or new[number].digest != record.digest:
                    self._forget((name, number))
            self._settle(name)
        return sorted(fresh, key=lambda record: record.revision)

    def defer(self, aliases: Mapping[tuple[str, str], Alias]) -> None:
        """Leave the versions of these aliases to their first request, until the aliases move."""
        self._deferred = dict(aliases)

    def is_current(self, record: VersionRecord) -> bool:
        """Whether the version is still published with these bytes."""
        prompt = self.index.prompts.get(record.prompt)
        known = prompt.versions.get(record.version) if prompt else None
        return known is not None and known.digest == record.digest

    def is_settled(self, record: VersionRecord) -> bool:
        """Whether the version has been checked or quarantined."""
        key = (record.prompt, record.version)
        return key in self._quarantined or key in self._checked

    def add(self, version: ServableVersion) -> float | None:
        """Add a version that passed every check and whose prefix is loaded.

        Returns seconds from its publication if it was published after this replica's start, else None. A version that
        was deleted meanwhile is unloaded immediately.
        """
        record = version.record
        if not self.is_current(record):
            self.unload(version.prefix_id)
            return None
        seconds: float | None = None
        if version.key not in self._checked:
            if self.first_revision is not None and self._is_news(record):
                seconds = publish_to_served_seconds(record, version.loaded_at)
            self._checked[version.key] = seconds
        if version.key not in self._loaded:
            self._loaded[version.key] = _Entry(version)
            self._evict(keep=version.key)
        self._settle(record.prompt)
        return seconds

    def quarantine(self, record: VersionRecord, reason: RefusalReason, message: str) -> None:
        """Quarantine a version: it never serves on this replica. Aliases that should move to it keep their targets."""
        if not self.is_current(record):
            return
        self._checked.pop((record.prompt, record.version), None)
        self._quarantined[record.prompt, record.version] = Quarantine(record, reason, message, datetime.now(UTC))
        for name in self.index.prompt(record.prompt).aliases_of(record.version):
            serving = self._serving.get((record.prompt, name))
            fields = {
                "alias": f"{record.prompt}@{name}",
                "refused": record.name,
                "reason": reason.value,
                "still_serving": str(serving or "none"),
            }
            text = "an alias names a quarantined version; its previous target keeps serving"
            level = logging.INFO if reason is RefusalReason.BASE_MODEL else logging.ERROR
            log.log(level, text, extra={"fields": fields})
        self._settle(record.prompt)

    # ---- for operators ----

    def statuses(self, prompt: str = "", caller: Caller = EVERYBODY) -> list[VersionStatus]:
        """Statuses sorted by prompt and version, without versions that are being checked.

        Raises NotFound for an unknown `prompt`. Prompts that the caller may not use are treated as unknown.
        """
        index = visible_index(self.index, caller)
        names = sorted(index.prompts) if not prompt else [index.prompt(prompt).name]
        return [status for name in names for status in self._statuses_of(name)]

    def decided(self) -> Iterator[tuple[ServableVersion | Quarantine, float | None]]:
        """Loaded and quarantined versions, with seconds from publication to serving; no walk over the many others."""
        for key, entry in self._loaded.items():
            yield entry.version, self._checked.get(key)
        for quarantine in self._quarantined.values():
            yield quarantine, None

    def wanted(self) -> list[VersionRecord]:
        """Unchecked versions that aliases name, except deferred aliases, in the order of publication."""
        found = {}
        for prompt in self.index.prompts.values():
            for alias in prompt.aliases.values():
                for target in () if self._is_deferred(prompt.name, alias) else alias.targets:
                    record = prompt.versions[target.version]
                    if not self.is_settled(record):
                        found[prompt.name, target.version] = record
        return sorted(found.values(), key=lambda record: record.revision)

    def recent(self, most: int) -> list[str]:
        """Prompts of the most recently used loaded versions, the latest first, at most `most`."""
        return list(islice(dict.fromkeys(prompt for prompt, _ in reversed(self._loaded)), most))

    def check_integrity(self) -> None:
        """Raises AssertionError if anything is held or retired, or the accounts disagree; for tests and idle times."""
        problems = [f"{key} is held {entry.holds} times" for key, entry in self._loaded.items() if entry.holds]
        problems += [f"{name} is retired but still held" for name in self._retired]
        problems += [f"{key} is loaded but unchecked" for key in self._loaded if key not in self._checked]
        problems += [f"{key} is both checked and quarantined" for key in self._checked if key in self._quarantined]
        if problems:
            raise AssertionError("; ".join(problems))

    def _statuses_of(self, name: str) -> Iterator[VersionStatus]:
        prompt = self.index.prompts[name]
        naming: dict[int, list[str]] = {}
        deferred = {alias.name for alias in prompt.aliases.values() if self._is_deferred(name, alias)}
        for alias in sorted(prompt.aliases.values(), key=lambda alias: alias.name):
            for target in alias.targets:
                naming.setdefault(target.version, []).append(alias.name)
        for number, record in sorted(prompt.versions.items()):
            key, aliases = (name, number), tuple(naming.get(number, ()))
            entry, quarantine, seconds = self._loaded.get(key), self._quarantined.get(key), self._checked.get(key)
            if quarantine is not None:
                yield VersionStatus(record, LoadedState.QUARANTINED, aliases, quarantine=quarantine)
            elif entry is not None:
                yield VersionStatus(record, LoadedState.LOADED, aliases, entry.version, None, entry.holds, seconds)
            elif key in self._checked or (not self._is_news(record) and deferred.issuperset(aliases)):
                yield VersionStatus(record, LoadedState.KNOWN, aliases, publish_to_served_seconds=seconds)

    def _is_deferred(self, prompt: str, alias: Alias) -> bool:
        return self._deferred.get((prompt, alias.name)) is alias

    def _is_foreign(self, key: VersionKey) -> bool:
        """Whether the version was tuned for another base model, which is normal in a store shared by several models."""
        quarantine = self._quarantined.get(key)
        return quarantine is not None and quarantine.reason is RefusalReason.BASE_MODEL

    def _is_news(self, record: VersionRecord) -> bool:
        return self.first_revision is None or record.revision > self.first_revision

    def _settle(self, name: str) -> None:
        """Move each alias of the prompt to the store's targets if all of them can serve."""
        prompt = self.index.prompts.get(name)
        aliases, versions = (prompt.aliases, prompt.versions) if prompt else ({}, {})
        for key in [key for key in self._serving if key[0] == name and key[1] not in aliases]:
            del self._serving[key]
        for alias in aliases.values():
            key = (name, alias.name)
            before = self._serving.get(key)
            if before is alias:
                continue
            targets = [(name, target.version) for target in alias.targets]
            if all(target in self._checked for target in targets):
                self._serving[key] = alias
                if before is not None:
                    fields = {"alias": f"{name}@{alias.name}", "before": str(before), "now": str(alias)}
                    log.info("alias moved", extra={"fields": fields})
                continue
            # Versions deleted from the store stop serving. A replica that has no earlier target serves those of the new
            # targets that are not quarantined.
            last = before or alias
            if before is None and not any(target in self._quarantined for target in targets):
                continue
            sound = tuple(
                target
                for target in last.targets
                if target.version in versions and (name, target.version) not in self._quarantined
            )
            if sound:
                self._serving[key] = last if len(sound) == len(last.targets) else replace(last, targets=sound)
            else:
                self._serving.pop(key, None)

    def _forget(self, key: VersionKey) -> None:
        """Remove a version that was deleted from the store; requests that hold it finish."""
        self._checked.pop(key, None)
        self._quarantined.pop(key, None)
        entry = self._loaded.pop(key, None)
        if entry is None:
            return
        if entry.holds:
            entry.retired = True
            self._retired[entry.version.prefix_id] = entry
        else:
            self.unload(entry.version.prefix_id)

    def _evict(self, keep: VersionKey) -> None:
        """Evict down to `max_loaded`, versions without an alias first, then the least recently used, but none held."""
        surplus = len(self._loaded) - self.max_loaded
        if surplus <= 0:
            return
        idle = [key for key, entry in self._loaded.items() if not entry.holds and key != keep]
        named = {(name, target.version) for (name, _), alias in self._serving.items() for target in alias.targets}
        for key in sorted(idle, key=lambda key: key in named)[:surplus]:
            self.unload(self._loaded.pop(key).version.prefix_id)
