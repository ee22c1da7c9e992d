"""Checks everything that a store holds: log, snapshots, aliases, and the digest and manifest of each version's blob.

The repair changes only what no reader needs: a snapshot that can't be read is replaced by a fresh one, and old blobs
that no version names are removed. A missing or damaged blob comes back by a copy from another store.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from shared.errors import DamagedBlob, Unavailable
from shared.prompt.blob import MAX_BLOB_BYTES, decode_blob, digest_of
from shared.store.base import ObjectBackend
from shared.store.garbage import GRACE_SECONDS
from shared.store.index import PromptRecord, StoreIndex, VersionRecord
from shared.store.layout import (
    BLOBS,
    LOG,
    MAX_SNAPSHOT_BYTES,
    SNAPSHOTS,
    USAGE_REFUSED,
    blob_key,
    digest_in,
    revision_in,
)
from shared.store.log import CommitLog
from shared.store.snapshot import decode_snapshot
from shared.store.store import PromptStore, summary_of


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it should be. A note is no problem, for example a blob that no version names yet."""

    kind: str
    """log, snapshot, alias, blob, manifest, orphan or usage."""
    subject: str
    """The version, alias or object."""
    text: str
    is_note: bool = False
    repaired: bool = False

    @property
    def is_problem(self) -> bool:
        """Whether it remains to be repaired."""
        return not self.is_note and not self.repaired


@dataclass(frozen=True)
class Verification:
    """What was checked, and the findings."""

    revision: int
    versions: int
    aliases: int
    blobs: int
    findings: tuple[Finding, ...]

    @property
    def is_sound(self) -> bool:
        """Whether no problem remains."""
        return not any(finding.is_problem for finding in self.findings)


def verify_store(
    backend: ObjectBackend,
    *,
    repair: bool = False,
    grace_seconds: float = GRACE_SECONDS,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Verification:
    """Read the whole store. A blob that no version names is an orphan after `grace_seconds`.

    `progress` gets the bytes that are read and all bytes. Raises Unavailable if the store is unavailable.
    """
    index, findings = _read_log(backend)
    log_is_sound = not findings
    findings += _snapshots(backend)
    bad: dict[str, str] = {}
    records = list(index.versions())
    done, total = 0, sum(record.size_bytes for record in records)
    for record in records:
        if finding := _version(backend, record):
            findings.append(finding)
            bad[record.name] = finding.text
        done += record.size_bytes
        progress(done, total)
    for prompt in index.prompts.values():
        findings += _aliases(prompt, bad)
    blobs = backend.list(BLOBS)
    findings += [
        Finding("usage", info.key, "a trainer could not add this usage; its log says why", is_note=True)
        for info in backend.list(USAGE_REFUSED)
    ]
    findings += _orphans(backend, index, grace_seconds)
    if repair and log_is_sound:
        findings = _repaired(backend, findings, grace_seconds)
    aliases = sum(len(prompt.aliases) for prompt in index.prompts.values())
    return Verification(index.revision, len(records), aliases, len(blobs), tuple(findings))


def _read_log(backend: ObjectBackend) -> tuple[StoreIndex, list[Finding]]:
    """The newest state that can be read, and what is wrong with the log."""
    log, findings = CommitLog(backend), []
    try:
        index, horizon = log.newest_snapshot(), log.horizon()
    except Unavailable as error:
        if not backend.list(SNAPSHOTS) and not backend.list(LOG):
            raise
        return StoreIndex(), [Finding("log", LOG, error.message)]
    numbers = {number for info in backend.list(LOG) if (number := revision_in(info.key)) is not None}
    for number in sorted(number for number in numbers if horizon < number <= index.revision):
        try:  # covered by the snapshot, but watchers still read it
            log.read(number)
        except DamagedBlob as error:
            findings.append(Finding("log", f"revision {number}", error.message))
    try:
        while (commit := log.read(index.revision + 1)) is not None:
            index = index.apply(commit)
    except DamagedBlob as error:
        findings.append(Finding("log", f"revision {index.revision + 1}", error.message))
    if not findings and (beyond := sorted(number for number in numbers if number > index.revision + 1)):
        text = f"is missing, and there are later entries, up to {beyond[-1]}"
        if log.read(index.revision + 1) is None:
            findings.append(Finding("log", f"revision {index.revision + 1}", text))
    return index, findings


def _snapshots(backend: ObjectBackend) -> list[Finding]:
    findings = []
    for info in backend.list(SNAPSHOTS):
        revision = revision_in(info.key)
        try:
            if revision is not None and (data := backend.get(info.key, MAX_SNAPSHOT_BYTES)) is not None:
                decode_snapshot(data, revision)
        except DamagedBlob as error:
            findings.append(Finding("snapshot", info.key, error.message))
    return findings


def _version(backend: ObjectBackend, record: VersionRecord) -> Finding | None:
    """What is wrong with a version's blob or manifest; None if nothing is."""
    try:
        data = backend.get(blob_key(record.digest), MAX_BLOB_BYTES)
        if data is None:
            return Finding("blob", record.name, f"the blob {record.digest} is missing")
        if (found := digest_of(data)) != record.digest:
            return Finding("blob", record.name, f"the bytes of {record.digest} have digest {found}")
        if len(data) != record.size_bytes:
            return Finding("blob", record.name, f"has {len(data)} bytes, and the log says {record.size_bytes}")
    except DamagedBlob as error:
        return Finding("blob", record.name, error.message)
    except Unavailable as error:
        backend.list(SNAPSHOTS)  # raises if the whole store is away, and not only this object
        return Finding("blob", record.name, f"the blob {record.digest} can't be read: {error.message}")
    try:
        blob = decode_blob(data)
    except DamagedBlob as error:
        return Finding("manifest", record.name, error.message)
    if blob.manifest.prompt != record.prompt:
        return Finding("manifest", record.name, f"is for the prompt {blob.manifest.prompt!r}")
    if replace(summary_of(blob), kind=record.summary.kind) != record.summary:
        return Finding("manifest", record.name, "says something else than the log about model, length or metrics")
    return None


def _aliases(prompt: PromptRecord, bad: dict[str, str]) -> Iterator[Finding]:
    for alias in prompt.aliases.values():
        for target in alias.targets:
            record = prompt.versions.get(target.version)
            name = f"{prompt.name}@{alias.name}"
            if record is None:
                yield Finding("alias", name, f"names version {target.version}, which does not exist")
            elif record.name in bad:
                yield Finding("alias", name, f"names version {target.version}, which no replica can load")


def _orphans(backend: ObjectBackend, index: StoreIndex, grace_seconds: float) -> Iterator[Finding]:
    named = {record.digest for record in index.versions()}
    oldest = datetime.now(UTC) - timedelta(seconds=grace_seconds)
    for info in backend.list(BLOBS):
        digest = digest_in(info.key)
        if digest is None:
            yield Finding("orphan", info.key, "is no blob of a version: something else wrote it", is_note=True)
        elif digest not in named:
            age = "old: a repair removes it" if info.modified_at <= oldest else "new: perhaps a running publication"
            yield Finding("orphan", digest, f"no version names its {info.size_bytes} bytes; {age}", is_note=True)


def _repaired(backend: ObjectBackend, findings: list[Finding], grace_seconds: float) -> list[Finding]:
    """The findings, marked as repaired where they were."""
    store = PromptStore(backend)
    removed = set(store.collect_unreferenced_blobs(grace_seconds))
    snapshots = {finding.subject for finding in findings if finding.kind == "snapshot"}
    for key in snapshots:
        backend.delete(key)
    if snapshots:
        store.write_snapshot()
    subjects = removed | snapshots
    return [replace(finding, repaired=True) if finding.subject in subjects else finding for finding in findings]
