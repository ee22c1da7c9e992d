"""Copies a store into another one, version by version, so that an interrupted copy continues where it ended.

Versions keep their numbers, digests, jobs and manifests; the target's log has its own revisions and times. Aliases move
after all versions, so each one always names a version that the target has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from shared.errors import Conflict, InvalidInput, NotFound
from shared.names import version_name
from shared.prompt.digest import digest_of
from shared.store.commit import Operation, VersionDeleted, VersionPublished, VersionSummary
from shared.store.index import PromptRecord, StoreIndex, VersionRecord
from shared.store.layout import blob_key
from shared.store.store import PromptStore

ACTOR = "store copy"
_ROUNDS = 5
"""Maximum number of passes over the source, which may change during a copy: each pass copies what is new."""
_NO_SUMMARY = VersionSummary("", "", 0, 0)
_NO_DIGEST = f"sha256:{'0' * 64}"


@dataclass
class CopyReport:
    """What a copy did."""

    versions_copied: int = 0
    versions_present: int = 0
    versions_skipped: int = 0
    """Deleted in the target, whose numbers are never used again."""
    blobs_repaired: int = 0
    bytes_copied: int = 0
    aliases_moved: int = 0
    versions_pruned: int = 0
    aliases_pruned: int = 0


def copy_store(
    source: PromptStore,
    target: PromptStore,
    *,
    prune: bool = False,
    check: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> CopyReport:
    """Copy what `target` lacks; a second call copies nothing.

    `prune` also removes what the source does not have. `check` reads each blob of the target and replaces damaged ones;
    otherwise only its size is compared. `progress` gets the bytes of the versions that are done and of all. Raises
    Conflict, before anything is written, if the target has other versions under the same numbers.
    """
    source.refresh(check=True)
    if source.id == target.id:
        raise InvalidInput.of("target", "is the same store as the source")
    report, index = CopyReport(), source.index()
    _check_histories(index, target.refresh(check=True))
    for remaining in reversed(range(_ROUNDS)):
        _copy_versions(index, source, target, report, check, progress)
        newest = source.refresh(check=True)
        if newest.revision == index.revision or not remaining:
            break  # aliases are moved as in the index whose versions are copied
        index = newest
        _check_histories(index, target.refresh())
    _move_aliases(index, target, report)
    if prune:
        _prune(index, target, report)
    return report


def _check_histories(source: StoreIndex, target: StoreIndex) -> None:
    for prompt in source.prompts.values():
        found = target.prompts.get(prompt.name)
        if found is None:
            continue
        for number, theirs in found.versions.items():
            mine = prompt.versions.get(number)
            if number > prompt.latest_version or (mine is not None and mine.digest != theirs.digest):
                raise Conflict(
                    f"the target has another {theirs.name} ({theirs.digest[:19]}…): it is not a copy of the source; "
                    "`softprompt prompts promote` publishes single versions there",
                    version=theirs.name,
                )
        gone = sorted(number for number in prompt.versions if _is_gone(found, number) and prompt.aliases_of(number))
        if gone:
            raise Conflict(
                f"{version_name(prompt.name, gone[0])} was deleted in the target, where its number is never used "
                f"again, and {prompt.name}@{prompt.aliases_of(gone[0])[0]} names it: copy to an empty store",
                version=version_name(prompt.name, gone[0]),
            )


def _is_gone(prompt: PromptRecord, number: int) -> bool:
    return number <= prompt.latest_version and number not in prompt.versions


def _copy_versions(
    index: StoreIndex,
    source: PromptStore,
    target: PromptStore,
    report: CopyReport,
    check: bool,
    progress: Callable[[int, int], None],
) -> None:
    report.versions_present = report.versions_skipped = 0
    done, total = 0, sum(record.size_bytes for record in index.versions())
    for prompt in index.prompts.values():
        for number in range(1, prompt.latest_version + 1):
            record = prompt.versions.get(number)
            found = target.index().prompts.get(prompt.name)
            if found is None or number > found.latest_version:
                data = None if record is None else _fetch(source, record)
                ops = tuple(_operations(prompt, number, record if data is not None else None))
                _publish(target, prompt.name, number, ops, data, report)
            elif record is not None and number in found.versions:
                report.versions_present += 1
                _mend(source, target, record, check, report)
            elif record is not None:
                report.versions_skipped += 1
            done += 0 if record is None else record.size_bytes
            progress(done, total)


def _fetch(source: PromptStore, record: VersionRecord) -> bytes | None:
    """The blob, whose digest is checked; None if the version was deleted since the copy began."""
    try:
        return source.fetch(record.digest)
    except NotFound:
        if record.version in source.refresh(check=True).prompt(record.prompt).versions:
            raise
        return None


def _operations(prompt: PromptRecord, number: int, record: VersionRecord | None) -> Iterator[Operation]:
    """A version, or, for one that the source has deleted, its number and its job, neither of which is used again."""
    if record is not None:
        yield VersionPublished(prompt.name, number, record.digest, record.size_bytes, record.job, record.summary)
        return
    stone = next((stone for stone in prompt.tombstones if stone.version == number), None)
    digest, job = (_NO_DIGEST, "deleted") if stone is None else (stone.digest, stone.job)
    yield VersionPublished(prompt.name, number, digest, 0, job, _NO_SUMMARY)
    yield VersionDeleted(prompt.name, number)


def _publish(
    target: PromptStore, prompt: str, number: int, ops: tuple[Operation, ...], data: bytes | None, report: CopyReport
) -> None:
    def build(index: StoreIndex) -> tuple[Operation, ...]:
        latest = index.prompts[prompt].latest_version if prompt in index.prompts else 0
        if latest != number - 1:
            raise Conflict(f"the target published {version_name(prompt, latest)} during the copy", version=latest)
        return ops

    target.commit(ACTOR, build, None if data is None else (digest_of(data), data))
    if data is not None:
        report.versions_copied += 1
        report.bytes_copied += len(data)


def _mend(source: PromptStore, target: PromptStore, record: VersionRecord, check: bool, report: CopyReport) -> None:
    """Write the blob of a version that the target has again if it is missing or damaged there."""
    key = blob_key(record.digest)
    info = target.backend.head(key)
    sound = info is not None and info.size_bytes == record.size_bytes
    if sound and check:
        sound = digest_of(target.backend.get(key, record.size_bytes) or b"") == record.digest
    if not sound and (data := _fetch(source, record)) is not None:
        target.put_blob(record.digest, data)
        report.blobs_repaired += 1
        report.bytes_copied += len(data)


def _move_aliases(index: StoreIndex, target: PromptStore, report: CopyReport) -> None:
    for prompt in index.prompts.values():
        found = target.index().prompts.get(prompt.name)
        there = {} if found is None else found.aliases
        for alias in prompt.aliases.values():
            if alias.name not in there or there[alias.name].targets != alias.targets:
                target.set_alias(prompt.name, alias.name, alias.targets, actor=ACTOR)
                report.aliases_moved += 1


def _prune(index: StoreIndex, target: PromptStore, report: CopyReport) -> None:
    for found in list(target.index().prompts.values()):
        mine = index.prompts.get(found.name, PromptRecord(found.name))
        for alias in found.aliases.keys() - mine.aliases.keys():
            target.set_alias(found.name, alias, None, actor=ACTOR)
            report.aliases_pruned += 1
        for number in found.versions.keys() - mine.versions.keys():
            target.delete_version(found.name, number, actor=ACTOR)
            report.versions_pruned += 1
