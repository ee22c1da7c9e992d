"""What a check of a store finds and repairs; on each kind of store."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from shared.errors import Unavailable
from shared.prompt.digest import digest_of
from shared.prompt.manifest import utc_now
from shared.store import PromptStore
from shared.store.base import ObjectBackend
from shared.store.layout import STORE_KEY, blob_key, log_key, snapshot_key
from shared.store.memory import MemoryBackend
from shared.store.open import existing_backend, open_store
from shared.store.replicas import ReplicaDirectory, ReplicaRecord
from shared.store.verify import Verification, verify_store
from tests.shared.prompt.blobs import make_blob
from tests.shared.store.faults import FaultyBackend


@pytest.fixture
def store(backend: ObjectBackend) -> PromptStore:
    made = PromptStore(backend)
    for number in (1, 2, 3):
        made.publish("tone", make_blob("tone", number), job=f"job-{number}", alias="default")
    return made


def problems(found: Verification) -> list[tuple[str, str]]:
    return [(finding.kind, finding.subject) for finding in found.findings if finding.is_problem]


def test_a_sound_store_has_no_findings(store: PromptStore, backend: ObjectBackend) -> None:
    store.write_snapshot()
    read: list[tuple[int, int]] = []
    found = verify_store(backend, progress=lambda done, total: read.append((done, total)))
    assert (found.versions, found.aliases, found.blobs, found.findings) == (3, 1, 3, ())
    assert found.is_sound
    total = sum(record.size_bytes for record in store.index().versions())
    assert read[-1] == (total, total)


def test_missing_damaged_and_foreign_blobs_are_found(store: PromptStore, backend: ObjectBackend) -> None:
    first, second, third = (record.digest for record in store.index().prompt("tone").versions.values())
    backend.delete(blob_key(first))
    backend.put(blob_key(second), store.fetch(second)[:-1] + b"x")
    backend.put(blob_key(third), b"")
    found = verify_store(backend, repair=True)
    assert problems(found) == [
        ("blob", "prompts/tone/versions/1"),
        ("blob", "prompts/tone/versions/2"),
        ("blob", "prompts/tone/versions/3"),
        ("alias", "tone@default"),
    ]


def test_a_blob_that_the_disk_does_not_return_is_named(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    for number in (1, 2):
        store.publish("tone", make_blob("tone", number), job=f"job-{number}", alias="default")
    blob = tmp_path / blob_key(store.index().prompt("tone").versions[1].digest)
    blob.unlink()
    blob.mkdir()
    found = verify_store(existing_backend(str(tmp_path)))
    assert problems(found) == [("blob", "prompts/tone/versions/1")]
    assert "can't be read: " in found.findings[0].text


def test_a_blob_that_is_no_version_is_found(backend: ObjectBackend) -> None:
    """The log names this blob, and the digest matches, as after an edit of the log by hand."""
    store = PromptStore(backend)
    record = store.publish("tone", make_blob("tone", 1), job="job-1")
    other = make_blob("labels", 1)
    backend.put(blob_key(digest_of(other)), other)
    entry = backend.get(log_key(1), 1 << 20) or b""
    lied = entry.replace(record.digest.encode(), digest_of(other).encode())
    backend.put(
        log_key(1), lied.replace(f'"size_bytes":{record.size_bytes}'.encode(), f'"size_bytes":{len(other)}'.encode())
    )
    assert ("manifest", "prompts/tone/versions/1") in problems(verify_store(backend))


def test_orphans_are_notes_and_only_old_ones_are_removed(store: PromptStore, backend: ObjectBackend) -> None:
    orphan = make_blob("tone", 9)
    store.put_blob(digest_of(orphan), orphan)
    found = verify_store(backend, repair=True)
    assert found.is_sound
    assert [(finding.kind, finding.subject, finding.repaired) for finding in found.findings] == [
        ("orphan", digest_of(orphan), False)
    ]
    removed = verify_store(backend, repair=True, grace_seconds=-5)
    assert [finding.repaired for finding in removed.findings] == [True]
    assert verify_store(backend).findings == ()
    assert all(store.fetch(record.digest) for record in store.index().versions())


def test_an_unreadable_snapshot_is_replaced(store: PromptStore, backend: ObjectBackend) -> None:
    revision = store.write_snapshot()
    backend.put(snapshot_key(revision), b"{")
    assert problems(verify_store(backend)) == [("snapshot", snapshot_key(revision))]
    assert verify_store(backend, repair=True).is_sound
    assert verify_store(backend).findings == ()
    assert PromptStore(backend).index() == store.index()


def test_an_unreadable_entry_is_a_problem_that_no_repair_touches(store: PromptStore, backend: ObjectBackend) -> None:
    backend.put(log_key(2), b"{")
    before = {info.key for info in backend.list("log/")} | {info.key for info in backend.list("blobs/")}
    found = verify_store(backend, repair=True, grace_seconds=-5)
    assert problems(found) == [("log", "revision 2")]
    assert (found.revision, found.versions) == (1, 1)
    assert {info.key for info in backend.list("log/")} | {info.key for info in backend.list("blobs/")} == before


def in_entry(revision: int, old: bytes, new: bytes) -> Callable[[ObjectBackend], None]:
    return lambda backend: in_object(backend, log_key(revision), old, new)


def in_object(backend: ObjectBackend, key: str, old: bytes, new: bytes) -> None:
    data = backend.get(key, 1 << 20) or b""
    assert old in data
    backend.put(key, data.replace(old, new, 1))


def swap(backend: ObjectBackend) -> None:
    """Entries 4 and 5 change places, with their revisions."""
    for number, other in ((4, 5), (5, 4)):
        data = backend.get(log_key(number), 1 << 20) or b""
        backend.put(f"tmp-{other}", data.replace(f'"revision":{number}'.encode(), f'"revision":{other}'.encode()))
    for number in (4, 5):
        backend.put(log_key(number), backend.get(f"tmp-{number}", 1 << 20) or b"")


def lose_under_the_snapshot(backend: ObjectBackend) -> None:
    PromptStore(backend).write_snapshot()
    backend.delete(log_key(2))


def lose_the_last_entry(backend: ObjectBackend) -> None:
    ReplicaDirectory(backend).put(ReplicaRecord(id="reader", revision=6, started_at=utc_now()))
    backend.delete(log_key(6))


def lose_the_last_entry_of_an_upgraded_store(backend: ObjectBackend) -> None:
    entry = json.loads(backend.get(log_key(1), 1 << 20) or b"")
    backend.put(log_key(1), json.dumps({name: entry[name] for name in entry.keys() - {"checksum", "store"}}).encode())
    lose_the_last_entry(backend)


def change_a_snapshot(backend: ObjectBackend) -> None:
    PromptStore(backend).write_snapshot()
    in_object(backend, snapshot_key(6), b'"deleted_at":"2', b'"deleted_at":"1')


def change_a_snapshot_of_an_earlier_build(backend: ObjectBackend) -> None:
    change_a_snapshot(backend)
    data = backend.get(snapshot_key(6), 1 << 20) or b""
    backend.put(snapshot_key(6), data[: data.rindex(b',"checksum"')] + b"}")


DAMAGE: dict[str, tuple[Callable[[ObjectBackend], None], tuple[str, str]]] = {
    "alias target": (in_entry(5, b'"version":1', b'"version":3'), ("log", "revision 5")),
    "digest": (in_entry(1, b'"digest":"sha256:', b'"digest":"sha256:0'), ("log", "revision 1")),
    "metric": (in_entry(2, b'"num_virtual_tokens":', b'"num_virtual_tokens":1'), ("log", "revision 2")),
    "actor": (in_entry(4, b'"actor":""', b'"actor":"x"'), ("log", "revision 4")),
    "tombstone": (in_entry(6, b'"version":2', b'"version":3'), ("log", "revision 6")),
    "swapped revisions": (swap, ("log", "revision 4")),
    "duplicate": (
        lambda backend: backend.put(
            log_key(7), (backend.get(log_key(5), 1 << 20) or b"").replace(b'"revision":5', b'"revision":7')
        ),
        ("log", "revision 7"),
    ),
    "truncated": (
        lambda backend: backend.put(log_key(6), (backend.get(log_key(6), 1 << 20) or b"")[:-20]),
        ("log", "revision 6"),
    ),
    "gap under a snapshot": (lose_under_the_snapshot, ("log", "revision 2")),
    "snapshot": (change_a_snapshot, ("snapshot", snapshot_key(6))),
    "snapshot without checksum": (change_a_snapshot_of_an_earlier_build, ("snapshot", snapshot_key(6))),
    "store.json": (lambda backend: backend.put(STORE_KEY, b"[]"), ("store", STORE_KEY)),
    "another id": (
        lambda backend: in_object(backend, STORE_KEY, b'"store_id":"', b'"store_id":"0'),
        ("store", STORE_KEY),
    ),
    "no store.json": (lambda backend: backend.delete(STORE_KEY), ("store", STORE_KEY)),
    "the last entry": (lose_the_last_entry, ("log", "revision 6")),
    "the last entry after an upgrade": (lose_the_last_entry_of_an_upgraded_store, ("log", "revision 6")),
    "a stray number": (
        lambda backend: backend.put(log_key(10**11), backend.get(log_key(6), 1 << 20) or b""),
        ("log", f"revisions 7 to {10**11 - 1}"),
    ),
    "an entry of another store": (
        lambda backend: in_object(backend, log_key(3), b'"store":"', b'"store":"0'),
        ("log", "revision 3"),
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_change_that_is_still_readable_is_found_and_only_snapshots_are_repaired(name: str) -> None:
    backend = MemoryBackend()
    store = PromptStore(backend)
    for number in (1, 2, 3):
        store.publish("tone", make_blob("tone", number), job=f"job-{number}", alias=None)
    store.set_alias("tone", "canary", 3)
    store.set_alias("tone", "default", 1)
    store.delete_version("tone", 2)
    damage, expected = DAMAGE[name]
    damage(backend)
    assert expected in problems(verify_store(backend))
    assert verify_store(backend, repair=True).is_sound == (expected[0] == "snapshot")
    if expected[0] == "snapshot":
        assert verify_store(backend).is_sound


def test_a_store_of_an_earlier_build_is_sound_with_a_note() -> None:
    backend = MemoryBackend()
    store = PromptStore(backend)
    for number in (1, 2, 3):
        store.publish("tone", make_blob("tone", number), job=f"job-{number}")
        entry = json.loads(backend.get(log_key(number), 1 << 20) or b"")
        assert entry.pop("checksum")
        assert entry.pop("store") == store.id
        backend.put(log_key(number), json.dumps(entry).encode())
    store.publish("tone", make_blob("tone", 4), job="job-4")
    found = verify_store(backend)
    assert found.is_sound
    assert [finding.text for finding in found.findings] == [
        "3 entries of an earlier build have no checksum: changes in them can't be found"
    ]


def test_a_changed_snapshot_of_a_truncated_log_leaves_the_blobs_checked(
    store: PromptStore, backend: ObjectBackend
) -> None:
    store.truncate_log(keep=1)
    for info in backend.list("snapshot/"):
        in_object(backend, info.key, b'"num_virtual_tokens":', b'"num_virtual_tokens":1')
    found = verify_store(backend, repair=True)
    assert found.versions == 3
    assert {kind for kind, _ in problems(found)} >= {"snapshot", "log"}
    assert not any(finding.kind == "orphan" or finding.repaired for finding in found.findings)


def test_a_missing_entry_between_others_is_found(store: PromptStore, backend: ObjectBackend) -> None:
    backend.delete(log_key(2))
    assert problems(verify_store(backend)) == [("log", "revision 2")]


def test_a_truncated_log_whose_snapshot_is_lost_is_a_problem(store: PromptStore, backend: ObjectBackend) -> None:
    store.truncate_log(keep=1)
    for info in backend.list("snapshot/"):
        backend.put(info.key, b"{")
    assert ("log", "log/") in problems(verify_store(backend, repair=True))


def test_a_store_that_does_not_answer_is_unavailable() -> None:
    backend = FaultyBackend(MemoryBackend())
    PromptStore(backend)
    backend.unavailable = True
    with pytest.raises(Unavailable):
        verify_store(backend)
