"""Watching a store that is idle, unavailable, damaged or truncated."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from shared.store import AliasMoved, Changes, PromptStore, StoreWatcher
from shared.store import follower as follower_module
from shared.store.commit import encode_commit
from shared.store.layout import log_key
from shared.store.memory import MemoryBackend
from tests.shared.prompt.blobs import make_blob
from tests.shared.store.faults import FaultyBackend
from tests.virtual_time import run_in_virtual_time
from tests.waiting import until

PROMPT = "support-tone"


class HangingBackend(MemoryBackend):
    """Its reads hang between `hangs.set()` and `answers.set()`."""

    def __init__(self) -> None:
        super().__init__()
        self.hangs, self.is_read, self.answers = threading.Event(), threading.Event(), threading.Event()

    def get(self, key: str, max_bytes: int) -> bytes | None:
        if self.hangs.is_set():
            self.is_read.set()
            self.answers.wait()
        return super().get(key, max_bytes)


def test_recent_commits_are_there_while_a_read_hangs() -> None:
    """The trainer looks at them on its event loop, which also renews its leases."""
    backend = HangingBackend()
    store = PromptStore(backend)
    publish(store, 1)
    backend.hangs.set()
    reader = threading.Thread(target=store.refresh, daemon=True)
    reader.start()
    backend.is_read.wait()
    try:
        assert [commit.revision for commit in store.recent_commits()] == [1]
        assert store.index().revision == 1
    finally:
        backend.answers.set()
        reader.join()


@pytest.fixture
def faulty() -> FaultyBackend:
    return FaultyBackend(MemoryBackend())


def publish(store: PromptStore, number: int) -> None:
    store.publish(PROMPT, make_blob(seed=number), job=f"job-{number}")


async def first_of(watcher: StoreWatcher) -> Changes:
    return await anext(aiter(watcher))


async def following(watcher: StoreWatcher, act: Callable[[list[Changes]], Awaitable[None]]) -> list[Changes]:
    seen: list[Changes] = []

    async def collect() -> None:
        async for changes in watcher:
            seen.append(changes)  # noqa: PERF401 (seen while it grows)

    task = asyncio.create_task(collect())
    try:
        await act(seen)
    finally:
        task.cancel()
    return seen


async def test_it_begins_with_the_present_state_and_goes_on_with_commits(faulty: FaultyBackend) -> None:
    writer, store = PromptStore(faulty.inner), PromptStore(faulty)
    publish(writer, 0)

    async def act(seen: list[Changes]) -> None:
        await until(lambda: len(seen) == 1)
        publish(writer, 1)
        await until(lambda: len(seen) == 2)
        writer.set_alias(PROMPT, "default", 1)
        await until(lambda: len(seen) == 3)

    first, second, third = await following(StoreWatcher(store), act)
    assert (first.restarted, first.index.revision) == (True, 1)
    assert (second.restarted, [commit.revision for commit in second.commits]) == (False, [2])
    assert isinstance(third.commits[0].ops[0], AliasMoved)


async def test_it_resumes_after_a_revision(faulty: FaultyBackend) -> None:
    store = PromptStore(faulty)
    for number in range(4):
        publish(store, number)
    changes = await first_of(StoreWatcher(PromptStore(faulty), since=2))
    assert [commit.revision for commit in changes.commits] == [3, 4]


async def test_an_idle_poll_is_one_read(faulty: FaultyBackend) -> None:
    store = PromptStore(faulty)
    publish(store, 0)
    watcher = StoreWatcher(store, since=1, poll_seconds=0.002)

    async def act(seen: list[Changes]) -> None:
        faulty.num_reads = faulty.num_lists = faulty.num_writes = 0
        await until(lambda: faulty.num_reads >= 20)
        assert (faulty.num_lists, faulty.num_writes) == (0, 0)
        assert seen == []

    await following(watcher, act)


async def test_while_the_store_is_unavailable_it_waits_and_logs_it_once(
    faulty: FaultyBackend, caplog: pytest.LogCaptureFixture
) -> None:
    writer, store = PromptStore(faulty.inner), PromptStore(faulty)
    watcher = StoreWatcher(store, since=0, poll_seconds=0.02)
    caplog.set_level(logging.INFO)

    async def act(seen: list[Changes]) -> None:
        faulty.unavailable = True
        await until(lambda: watcher.problem != "")
        for number in range(3):
            publish(writer, number)
        refused = faulty.num_refused
        await until(lambda: faulty.num_refused >= refused + 5)
        assert seen == []
        assert store.index().revision == 0
        faulty.unavailable = False
        await until(lambda: len(seen) == 1)

    (changes,) = await following(watcher, act)
    assert [commit.revision for commit in changes.commits] == [1, 2, 3]
    assert watcher.problem == ""
    assert [record.levelname for record in caplog.records if "can't be followed" in record.message] == ["WARNING"]
    assert "can be followed again" in caplog.text


async def test_an_entry_that_cannot_be_read_stops_it_there(faulty: FaultyBackend) -> None:
    store = PromptStore(faulty)
    publish(store, 0)
    good = faulty.inner.get(log_key(1), 1 << 20)
    assert good is not None
    faulty.inner.put(log_key(2), b"\xff damaged")
    watcher = StoreWatcher(store, since=0, poll_seconds=0.01)

    async def act(seen: list[Changes]) -> None:
        await until(lambda: "log entry 2" in watcher.problem)
        assert store.index().revision == 1
        faulty.inner.delete(log_key(2))
        await until(lambda: len(seen) == 1)

    (changes,) = await following(watcher, act)
    assert [commit.revision for commit in changes.commits] == [1]


async def test_one_that_fell_behind_a_cut_starts_from_the_snapshot(
    faulty: FaultyBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follower_module, "CHECK_SECONDS", 0.05)
    writer, store = PromptStore(faulty.inner), PromptStore(faulty)
    watcher = StoreWatcher(store, since=0, poll_seconds=0.01)

    async def act(seen: list[Changes]) -> None:
        faulty.unavailable = True
        await until(lambda: watcher.problem != "")
        for number in range(5):
            publish(writer, number)
        writer.truncate_log(keep=0)
        faulty.unavailable = False
        await until(lambda: len(seen) == 1)
        publish(writer, 5)
        await until(lambda: len(seen) == 2)

    first, second = await following(watcher, act)
    assert (first.restarted, first.index.revision) == (True, 5)
    assert [commit.revision for commit in second.commits] == [6]


@pytest.mark.parametrize(("is_old", "num_reads"), [(False, 2), (True, 3)])
def test_a_new_entry_that_names_the_store_costs_its_reader_one_read_and_one_that_finds_no_next(
    faulty: FaultyBackend, *, is_old: bool, num_reads: int
) -> None:
    """An entry of an earlier build names none: the reader looks whether the store is still the same."""
    writer, reader = PromptStore(faulty.inner), PromptStore(faulty)
    publish(writer, 0)
    if is_old:
        [commit] = writer.recent_commits()
        faulty.inner.put(log_key(1), encode_commit(replace(commit, store="")))
    faulty.num_reads = 0
    assert reader.refresh().revision == 1
    assert faulty.num_reads == num_reads


async def test_another_store_in_the_same_place_is_noticed(
    faulty: FaultyBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follower_module, "CHECK_SECONDS", 0.05)
    store = PromptStore(faulty)
    publish(store, 0)
    watcher = StoreWatcher(store, since=1, poll_seconds=0.01)

    async def act(seen: list[Changes]) -> None:
        faulty.inner = MemoryBackend()
        other = PromptStore(faulty.inner)
        for number in range(3):
            other.publish("other", make_blob("other", number), job=str(number))
        await until(lambda: len(seen) == 1)

    (changes,) = await following(watcher, act)
    assert changes.restarted
    assert list(changes.index.prompts) == ["other"]


async def test_a_hundred_watchers_of_one_directory_see_a_version(local_store: PromptStore) -> None:
    reader = PromptStore(local_store.backend)
    watchers = [StoreWatcher(reader, since=0) for _ in range(100)]
    tasks = [asyncio.create_task(first_of(watcher)) for watcher in watchers]
    await asyncio.to_thread(publish, local_store, 0)
    results = await asyncio.gather(*tasks)
    assert {changes.index.revision for changes in results} == {1}


@pytest.mark.parametrize("poll_seconds", [0.15, 2.0])
def test_after_ten_minutes_without_the_store_it_catches_up_within_two_polls(
    poll_seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def act() -> float:
        faulty = FaultyBackend(MemoryBackend())
        writer, loop = PromptStore(faulty.inner), asyncio.get_running_loop()
        changes = aiter(StoreWatcher(PromptStore(faulty), since=0, poll_seconds=poll_seconds))
        news = asyncio.ensure_future(anext(changes))
        faulty.unavailable = True
        await asyncio.sleep(300)
        publish(writer, 0)
        await asyncio.sleep(300)
        assert not news.done()
        faulty.unavailable, returned_at = False, loop.time()
        assert (await news).index.revision == 1
        return loop.time() - returned_at

    assert max(run_in_virtual_time(monkeypatch, act) for _ in range(20)) <= 2 * poll_seconds
