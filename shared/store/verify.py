"""Checks everything that a store holds: log, snapshots, aliases, and the digest and manifest of each version's blob.

The repair changes only what no reader needs: a snapshot that can't be read is replaced by a fresh one, and old blobs
that no version names are removed. A missing or damaged blob comes back by a copy from another store.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from shared.errors import DamagedBlob, PreconditionFailed, Unavailable
from shared.prompt.digest import MAX_BLOB_BYTES, digest_of
from shared.store.base import ObjectBackend
from shared.store.checksum import checksum_matches
from shared.store.commit import decode_commit
from shared.store.garbage import GRACE_SECONDS
from shared.store.identity import StoreIdentity
from shared.store.index import PromptRecord, StoreIndex, VersionRecord
from shared.store.layout import (
    BLOBS,
    LOG,
    MAX_COMMIT_BYTES,
    MAX_SNAPSHOT_BYTES,
    SNAPSHOTS,
    STORE_KEY,
    USAGE_REFUSED,
    blob_key,
    digest_in,
    log_key,
    revision_in,
    snapshot_key,
)
from shared.store.log import CommitLog
from shared.store.replicas import ReplicaDirectory
from shared.store.snapshot import decode_snapshot
from shared.store.store import PromptStore, summary_of


@dataclass(frozen=True)
class Finding:
    """A problem, or a note about something harmless, for example a blob that no version names yet."""

    kind: str
    """store, log, snapshot, alias, blob, manifest, orphan or usage."""
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
    replicas = ReplicaDirectory(backend).list()  # before the log, which thus has all that they have read
    index, findings = _read_log(backend)
    ahead = max(replicas, key=lambda replica: replica.revision, default=None)
    is_sound = not any(finding.is_problem for finding in findings)
    if ahead is not None and ahead.revision > index.revision and is_sound:
        text = f"is missing: the replica {ahead.id} has read revision {ahead.revision}"
        findings.append(Finding("log", f"revision {index.revision + 1}", text))
    log_is_sound = not any(finding.is_problem and finding.kind != "snapshot" for finding in findings)
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
    if log_is_sound:  # else it does not say which blobs have a version
        findings += _orphans(backend, index, grace_seconds)
    if repair and log_is_sound:
        findings = _repaired(backend, findings, grace_seconds)
    aliases = sum(len(prompt.aliases) for prompt in index.prompts.values())
    return Verification(index.revision, len(records), aliases, len(blobs), tuple(findings))


def _read_log(backend: ObjectBackend) -> tuple[StoreIndex, list[Finding]]:
    """The state that the log leads to, as far as it can be read, and what is wrong with identity, log and snapshots."""
    log, entries = CommitLog(backend), backend.list(LOG)
    store_id, findings = _identity(backend)
    snapshots, changed, unsound = _snapshots(backend)
    findings += unsound
    horizon, index = log.horizon(), StoreIndex()
    if horizon:
        base = {revision: found for revision, found in snapshots.items() if revision >= horizon}
        if not base:
            text = "has been truncated, and no unchanged snapshot has the truncated part"
            findings.append(Finding("log", LOG, text))
            base = {revision: found for revision, found in changed.items() if revision >= horizon}
        if not base:
            return index, findings
        index = base[min(base)]
    written_to: dict[str, list[int]] = {}
    numbers = {number for info in entries if (number := revision_in(info.key)) is not None}
    previous = horizon
    for number in sorted(number for number in numbers | snapshots.keys() if number > horizon):
        if number > previous + 1:
            findings.append(Finding("log", _revisions(previous + 1, number - 1), _MISSING))
        previous, subject = number, f"revision {number}"
        try:
            data = backend.get(log_key(number), MAX_COMMIT_BYTES)
            if data is None and log.horizon() != horizon:
                return _read_log(backend)  # truncated in the meantime
            if data is None:
                findings.append(Finding("log", subject, _MISSING))
            else:
                commit = decode_commit(data, number)
                written_to.setdefault(commit.store if (same := checksum_matches(data)) is not None else "", []).append(
                    number
                )
                if same is False:
                    findings.append(
                        Finding("log", subject, "was changed after it was written: its checksum is another")
                    )
                if number == index.revision + 1:
                    index = index.apply(commit)
        except DamagedBlob as error:
            findings.append(Finding("log", subject, error.message))
        if (snapshot := snapshots.get(number)) is None:
            continue
        if index.revision < number:
            index = snapshot
        elif index.revision == number and index != snapshot:
            findings.append(Finding("snapshot", snapshot_key(number), "says something else than the log"))
    return index, findings + list(_foreign(store_id, written_to))


_MISSING = "is missing, and there are later entries or snapshots"


def _revisions(first: int, last: int) -> str:
    return f"revision {first}" if first == last else f"revisions {first} to {last}"


def _identity(backend: ObjectBackend) -> tuple[str, list[Finding]]:
    try:
        found = StoreIdentity(backend).read()
    except (PreconditionFailed, DamagedBlob) as error:
        return "", [Finding("store", STORE_KEY, error.message)]
    return ("", [Finding("store", STORE_KEY, "is missing")]) if found is None else (found.store_id, [])


def _foreign(store_id: str, written_to: dict[str, list[int]]) -> Iterator[Finding]:
    """Entries that were written to another store. `written_to`: revisions by the id of the store that they name."""
    if without := written_to.pop("", []):
        text = f"{len(without)} entries of an earlier build have no checksum: changes in them can't be found"
        yield Finding("log", LOG, text, is_note=True)
    if store_id and len(written_to) == 1 and store_id not in written_to:
        text = f"has the id {store_id[:100]!r}, and the log was written to the store {next(iter(written_to))!r}"
        yield Finding("store", STORE_KEY, text)
    elif store_id:
        for other, numbers in written_to.items():
            for number in numbers if other != store_id else ():
                yield Finding("log", f"revision {number}", f"was written to another store, {other!r}")


def _snapshots(backend: ObjectBackend) -> tuple[dict[int, StoreIndex], dict[int, StoreIndex], list[Finding]]:
    """The snapshots that can be trusted, those that can be read but were changed, and what is wrong."""
    sound, changed, findings = dict[int, StoreIndex](), dict[int, StoreIndex](), list[Finding]()
    for info in backend.list(SNAPSHOTS):
        if (revision := revision_in(info.key)) is None:
            continue
        try:
            if (data := backend.get(info.key, MAX_SNAPSHOT_BYTES)) is None:
                continue  # removed after the list was read
            index = decode_snapshot(data, revision)
        except DamagedBlob as error:
            findings.append(Finding("snapshot", info.key, error.message))
            continue
        if checksum_matches(data) is False:
            findings.append(Finding("snapshot", info.key, "was changed after it was written: its checksum is another"))
            changed[revision] = index
        else:
            sound[revision] = index
    return sound, changed, findings


def _version(backend: ObjectBackend, record: VersionRecord) -> Finding | None:
    """What is wrong with a version's blob or manifest; None if nothing is."""
    from shared.prompt.blob import decode_blob  # needs torch

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
        backend.list(SNAPSHOTS)  # raises if the whole store is unavailable, and not only this object
        return Finding("blob", record.name, f"the blob {record.digest} can't be read: {error.message}")
    try:
        blob = decode_blob(data)
    except DamagedBlob as error:
        return Finding("manifest", record.name, error.message)
    if blob.manifest.prompt != record.prompt:
        return Finding("manifest", record.name, f"is for the prompt {blob.manifest.prompt!r}")
    if replace(summary_of(blob.manifest), kind=record.summary.kind) != record.summary:
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
            yield Finding("orphan", info.key, "is not the blob of a version: another program wrote it", is_note=True)
        elif digest not in named:
            age = "old: a repair removes it" if info.modified_at <= oldest else "new: perhaps a running publication"
            yield Finding("orphan", digest, f"no version names its {info.size_bytes} bytes; {age}", is_note=True)


def _repaired(backend: ObjectBackend, findings: list[Finding], grace_seconds: float) -> list[Finding]:
    """The findings, marked as repaired where they were."""
    snapshots = {finding.subject for finding in findings if finding.kind == "snapshot"}
    for key in snapshots:  # before the store is read: the log leads to its state without them
        backend.delete(key)
    store = PromptStore(backend)
    if snapshots:
        store.write_snapshot()
    subjects = snapshots | set(store.collect_unreferenced_blobs(grace_seconds))
    return [replace(finding, repaired=True) if finding.subject in subjects else finding for finding in findings]
