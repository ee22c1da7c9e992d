"""Log entries, snapshots, store identity and heartbeats as bytes that may be old, new, damaged or hostile."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from shared.errors import DamagedBlob, PreconditionFailed, Unavailable
from shared.store import LoadedVersion, PromptStore, ReplicaRecord, open_store
from shared.store.base import ObjectBackend
from shared.store.commit import decode_commit, encode_commit
from shared.store.index import StoreIndex
from shared.store.layout import SNAPSHOTS, STORE_KEY, log_key, replica_key, snapshot_key
from shared.store.replicas import ReplicaDirectory
from shared.store.snapshot import decode_snapshot, encode_snapshot
from tests.shared.prompt.blobs import TIME, make_blob

PROMPT = "support-tone"


def commit_with(op: dict[str, Any], **fields: Any) -> bytes:
    return json.dumps(
        {"revision": 1, "txid": "t", "time": TIME, "actor": "", "format": 1, "ops": [op], **fields}
    ).encode()


MOVE = {"op": "alias", "prompt": PROMPT, "alias": "default", "targets": [{"version": 1, "weight": 1}]}


def test_an_entry_reads_back_and_ignores_what_a_newer_writer_added() -> None:
    commit = decode_commit(commit_with({**MOVE, "reason": "a later field"}, region="eu"), 1)
    assert decode_commit(encode_commit(commit), 1) == commit


def test_a_newer_format_is_said() -> None:
    with pytest.raises(DamagedBlob, match="has format 2"):
        decode_commit(commit_with({"op": "unheard-of"}, format=2), 1)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{}",
        commit_with({**MOVE, "prompt": "../x"}),
        commit_with({**MOVE, "op": "unheard-of"}),
        commit_with({**MOVE, "targets": [{"version": 0}]}),
        commit_with(
            {"op": "publish", "prompt": PROMPT, "version": 1, "digest": "sha256:../../x", "size_bytes": 1, "job": "j"}
        ),
        commit_with(MOVE, revision=2),
        commit_with(MOVE, ops=[]),
        b"[" * 100_000,
    ],
)
def test_damaged_entries(data: bytes) -> None:
    with pytest.raises(DamagedBlob, match="log entry 1"):
        decode_commit(data, 1)


@given(st.binary(max_size=200))
def test_any_bytes_are_an_entry_or_damaged(data: bytes) -> None:
    with pytest.raises(DamagedBlob):
        decode_commit(data, 1)


@pytest.mark.parametrize("op", [MOVE, {"op": "delete", "prompt": PROMPT, "version": 1}])
def test_an_entry_that_cannot_follow_is_refused(op: dict[str, Any]) -> None:
    with pytest.raises(DamagedBlob, match="does not exist"):
        StoreIndex().apply(decode_commit(commit_with(op), 1))


def test_a_snapshot_gives_the_same_index(local_store: PromptStore) -> None:
    for number in range(3):
        local_store.publish(PROMPT, make_blob(seed=number), job=f"job-{number}")
    local_store.delete_version(PROMPT, 1)
    index = local_store.index()
    assert decode_snapshot(encode_snapshot(index), 4) == index
    with pytest.raises(DamagedBlob, match="contains revision 4"):
        decode_snapshot(encode_snapshot(index), 5)
    with pytest.raises(DamagedBlob, match="format 2"):
        decode_snapshot(b'{"format": 2}', 4)


def test_a_damaged_snapshot_is_passed_over_as_long_as_the_log_is_whole(
    store: PromptStore, backend: ObjectBackend
) -> None:
    store.publish(PROMPT, make_blob(), job="job")
    backend.put(snapshot_key(1), b"damaged")
    assert PromptStore(backend).index() == store.index()
    store.publish(PROMPT, make_blob(seed=1), job="job-1")
    store.truncate_log(keep=0)
    assert PromptStore(backend).index() == store.index()
    for info in backend.list(SNAPSHOTS):
        backend.put(info.key, b"damaged")
    with pytest.raises(Unavailable, match="has been truncated"):
        PromptStore(backend)


def test_snapshots_are_written_now_and_then_and_few_are_kept(
    local_store: PromptStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.store.store.SNAPSHOT_EVERY", 2)
    for number in range(9):
        local_store.publish(PROMPT, make_blob(seed=number), job=f"job-{number}")
    assert [info.key for info in local_store.backend.list(SNAPSHOTS)] == [snapshot_key(6), snapshot_key(8)]


@pytest.mark.parametrize("data", [b"", b"{}", b'{"format": 2, "store_id": "x"}'])
def test_a_place_that_holds_something_else_is_refused(backend: ObjectBackend, data: bytes) -> None:
    backend.put(STORE_KEY, data)
    with pytest.raises(PreconditionFailed):
        PromptStore(backend)


def test_a_commit_does_not_land_in_a_store_that_replaced_this_one(store: PromptStore, backend: ObjectBackend) -> None:
    store.publish(PROMPT, make_blob(), job="job")
    for key in (STORE_KEY, log_key(1)):
        backend.delete(key)
    PromptStore(backend)
    with pytest.raises(Unavailable, match="replaced"):
        store.publish(PROMPT, make_blob(seed=1), job="job-1")
    assert backend.get(log_key(2), 1 << 20) is None
    assert store.publish(PROMPT, make_blob(seed=1), job="job-1").version == 1


def test_heartbeats(store: PromptStore, backend: ObjectBackend) -> None:
    loaded = LoadedVersion(prompt=PROMPT, version=1, digest="sha256:0", loaded_at=TIME, publish_to_served_seconds=0.3)
    record = ReplicaRecord(id="inference-0", revision=7, started_at=TIME, loaded=(loaded,))
    ReplicaDirectory(store.backend).put(ReplicaRecord(id="inference-0", revision=6, started_at=TIME))
    ReplicaDirectory(store.backend).put(record)
    ReplicaDirectory(store.backend).put(ReplicaRecord(id="crashed", started_at=TIME, updated_at=TIME))
    for garbled in (b"{", b"null", b"[" * 100_000, b'{"id": "garbled", "started_at": "2026-02-30T00:00:00Z"}'):
        backend.put(replica_key("garbled"), garbled)
        assert store.list_replicas() == [record]
    backend.put(replica_key("copy"), record.model_dump_json().encode())
    assert store.list_replicas() == [record]
    ReplicaDirectory(store.backend).remove("inference-0")
    assert store.list_replicas() == []
    with pytest.raises(ValidationError):
        ReplicaRecord(id="../x", started_at=TIME)


def test_entries_hold_no_more_than_they_may(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    (tmp_path / "store" / "log").mkdir()
    with (tmp_path / "store" / log_key(1)).open("wb") as file:
        file.truncate(10 << 30)  # sparse: reading it whole would take all memory
    with pytest.raises(DamagedBlob, match="at most"):
        store.refresh()
