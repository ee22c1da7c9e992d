"""Maintenance of a store: what it removes and keeps, and that it doesn't disturb publishers, watchers and others."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from shared.errors import NotFound, Unavailable
from shared.store import Changes, PromptStore, ReplicaRecord, StoreWatcher, VersionPublished, VersionRecord, open_store
from shared.store import follower as follower_module
from shared.store.base import ObjectBackend
from shared.store.layout import REPLICAS, replica_key
from shared.store.maintenance import MaintenancePolicy, maintain
from shared.store.memory import MemoryBackend
from shared.store.replicas import ReplicaDirectory
from tests.shared.prompt.blobs import TIME, make_blob
from tests.shared.store.faults import FaultyBackend

PROMPT = "support-tone"


def with_grace(seconds: float, **kept: int) -> MaintenancePolicy:
    """A grace time below the setting's range."""
    return MaintenancePolicy(**kept).model_copy(update={"blob_grace_seconds": seconds})


AT_ONCE = with_grace(-1, keep_versions=2, keep_log_entries=4)


def publish(store: PromptStore, number: int, prompt: str = PROMPT, alias: str | None = None) -> str:
    return store.publish(prompt, make_blob(prompt, number), job=f"job-{number}", alias=alias).digest


def age(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


def test_a_round_keeps_the_newest_and_the_aliased(store: PromptStore, backend: ObjectBackend) -> None:
    for number in range(6):
        publish(store, number, alias="stable" if number == 1 else None)
    other = publish(store, 0, prompt="other")
    report = maintain(store, AT_ONCE)
    assert sorted(store.index().prompt(PROMPT).versions) == [2, 5, 6]
    assert (report.versions_deleted, report.failures) == (3, {})
    assert report.log_entries_removed == 4  # of 8, since twice as many as are kept had gathered
    assert report.blobs_removed == 3
    fresh = PromptStore(backend)
    assert fresh.index() == store.index()
    assert all(fresh.fetch(record.digest) for record in fresh.index().versions())
    assert fresh.fetch(other)
    again = maintain(fresh, AT_ONCE)
    assert not again.did_something


def test_without_a_retention_setting_no_version_goes(store: PromptStore) -> None:
    for number in range(6):
        publish(store, number)
    report = maintain(store, with_grace(-1))
    assert not report.did_something
    assert len(store.index().prompt(PROMPT).versions) == 6


def test_what_dead_writers_and_dead_replicas_left_is_swept(tmp_path: Path, local_store: PromptStore) -> None:
    root = tmp_path / "store"
    ReplicaDirectory(local_store.backend).put(ReplicaRecord(id="killed", started_at=TIME))
    ReplicaDirectory(local_store.backend).put(ReplicaRecord(id="alive", started_at=TIME))
    age(root / replica_key("killed"), 2 * 24 * 3600)
    for name, seconds in (("1-1-dead", 7200), ("1-2-busy", 10)):
        (root / "tmp" / name).write_bytes(b"half a blob")
        age(root / "tmp" / name, seconds)
    report = maintain(local_store, MaintenancePolicy())
    assert (report.replicas_forgotten, report.leftovers_removed) == (1, 1)
    assert [info.key for info in local_store.backend.list(REPLICAS)] == [replica_key("alive")]
    assert [path.name for path in (root / "tmp").iterdir()] == ["1-2-busy"]


def test_a_step_that_fails_leaves_the_others_to_be_done() -> None:
    faulty = FaultyBackend(MemoryBackend())
    store = PromptStore(faulty)
    for number in range(4):
        publish(store, number)

    def no_deletion_in_the_log(_number: int, key: str, write: Callable[[], bool]) -> bool:
        if key.startswith("truncated/"):
            raise Unavailable("the store does not answer")
        return write()

    faulty.on_write = no_deletion_in_the_log
    report = maintain(store, with_grace(-1, keep_versions=2, keep_log_entries=1))
    assert report.failures == {"log": "the store does not answer"}
    assert (report.versions_deleted, report.blobs_removed) == (2, 2)
    faulty.unavailable = True
    assert set(maintain(store, AT_ONCE).failures) == {"retention", "log", "blobs", "replicas", "leftovers", "usage"}


def test_it_stops_on_request(local_store: PromptStore) -> None:
    for number in range(6):
        publish(local_store, number)
    assert not maintain(local_store, AT_ONCE, lambda: True).did_something
    asked = iter([False, False, False, True])
    report = maintain(local_store, AT_ONCE, lambda: next(asked, True))
    assert report.versions_deleted == 4
    assert report.blobs_removed == 0


async def test_several_maintainers_beside_publishers_and_a_watcher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three trainers publish to three prompts and run maintenance without pause; a watcher of all prompts misses
    nothing.
    """
    monkeypatch.setattr(follower_module, "CHECK_SECONDS", 0.05)
    url, done = str(tmp_path / "store"), threading.Event()
    num_versions, grace = 40, with_grace(2, keep_versions=3, keep_log_entries=8)

    def trainer(name: str) -> None:
        store = open_store(url)
        for number in range(num_versions):
            publish(store, number, prompt=name, alias="default")

    def maintainer() -> list[str]:
        store, failures = open_store(url), list[str]()
        while not done.is_set():
            failures += maintain(store, grace).failures.values()
        return failures

    watcher_store = open_store(url)
    seen: dict[str, int] = {}
    revisions: list[int] = []

    def take(changes: Changes) -> None:
        revisions.append(changes.index.revision)
        for commit in changes.commits:
            for op in commit.ops:
                if isinstance(op, VersionPublished):
                    assert op.version == seen.get(op.prompt, 0) + 1, "no version is missed and none comes twice"
                    seen[op.prompt] = op.version
        if changes.restarted:
            seen.update({prompt.name: prompt.latest_version for prompt in changes.index.prompts.values()})
        for prompt in changes.index.prompts.values():
            check_fetch(prompt.versions[prompt.aliases["default"].targets[0].version])

    def check_fetch(named: VersionRecord) -> None:
        try:
            assert watcher_store.fetch(named.digest)
        except NotFound:  # unless this thread slept for longer than the grace
            assert named.version not in watcher_store.refresh().prompt(named.prompt).versions

    names = ("a", "b", "c")
    async with asyncio.TaskGroup() as group:
        maintainers = [group.create_task(asyncio.to_thread(maintainer)) for _ in range(3)]
        trainers = [group.create_task(asyncio.to_thread(trainer, name)) for name in names]
        async for changes in StoreWatcher(watcher_store, since=0, poll_seconds=0.01):
            take(changes)
            if all(seen.get(name) == num_versions for name in names):
                break
        await asyncio.gather(*trainers)
        done.set()
    assert [failure for task in maintainers for failure in task.result()] == []
    assert not maintain(
        open_store(url), grace
    ).failures  # a pass that began before the last versions came has left some
    assert revisions == sorted(revisions)
    final = open_store(url).refresh()
    assert {name: sorted(final.prompt(name).versions)[-1] for name in names} == dict.fromkeys(names, num_versions)
    assert all(len(final.prompt(name).versions) <= 4 for name in names)
    final.check_integrity()
