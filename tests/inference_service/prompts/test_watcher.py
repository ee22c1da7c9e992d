"""Following the store: eager loads, retries, outages, and a store that was replaced."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from inference_service.prompts.load_queue import VersionLoads
from inference_service.prompts.registry import PromptRegistry
from inference_service.prompts.watcher import PromptWatcher
from shared.errors import Unavailable
from shared.names import PromptReference
from shared.process.call_pool import CallPool
from tests.inference_service.prompts.fakes import FakeLoader, FakeStore, Log, NullPromptObserver
from tests.virtual_time import run_in_virtual_time
from tests.waiting import until


class Bench:
    def __init__(self) -> None:
        self.log, self.loader = Log(), FakeLoader()
        self.store = FakeStore(self.log)
        self.registry = PromptRegistry(lambda prefix_id: None)
        self.loads = VersionLoads(self.loader, self.registry, NullPromptObserver())
        self.watcher = PromptWatcher(self.store, self.registry, self.loads, NullPromptObserver(), poll_seconds=0.005)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        await self.watcher.start()
        task = asyncio.create_task(self.watcher.run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await self.loads.close()

    def meaning(self) -> int:
        return self.registry.resolve(PromptReference.parse("tone")).version


@pytest.fixture
def bench() -> Bench:
    return Bench()


async def test_start_loads_what_aliases_name_and_nothing_else(bench: Bench) -> None:
    for version in range(1, 10):
        bench.log.publish(version, alias="default" if version == 5 else None)
    async with bench.running():
        assert bench.loader.attempts == [5]


async def test_start_waits_for_a_store_that_is_away(bench: Bench) -> None:
    bench.log.publish(1)
    bench.store.unavailable = True
    start = asyncio.create_task(bench.watcher.start())
    await until(lambda: bench.store.num_polls > 3)
    assert not start.done()
    bench.store.unavailable = False
    await start
    assert bench.loader.attempts == [1]


async def test_start_does_without_the_fleets_records_if_their_list_hangs(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.log.publish(1)
    hung = threading.Event()
    monkeypatch.setattr(bench.store, "list_replicas", hung.wait)
    pool = CallPool("prompt_store_watch", max_threads=2, timeout_seconds=0.05)
    watcher = PromptWatcher(bench.store, bench.registry, bench.loads, NullPromptObserver(), 0.005, pool)
    await watcher.start()
    hung.set()
    assert bench.loader.attempts == [1]


async def test_start_does_not_wait_for_ever_for_a_version_that_cannot_be_fetched(bench: Bench) -> None:
    bench.log.publish(1)
    bench.log.publish(1, prompt="other")
    bench.loader.absent = {1}
    async with bench.running():
        bench.loader.absent = set()
        await until(lambda: bench.registry.num_loaded == 2)


async def test_new_versions_are_loaded_before_the_first_request(bench: Bench) -> None:
    async with bench.running():
        bench.log.publish(1)
        bench.log.publish(2, alias=None)
        await until(lambda: bench.registry.num_loaded == 2)
        assert bench.meaning() == 1


async def test_a_damaged_version_is_tried_once_and_an_absent_one_until_it_is_there(bench: Bench) -> None:
    bench.loader.refused, bench.loader.absent = {1}, {2}
    async with bench.running():
        bench.log.publish(1)
        bench.log.publish(2)
        await until(lambda: bench.loader.attempts.count(2) >= 3)
        bench.loader.absent = set()
        await until(lambda: bench.registry.num_loaded == 1)
        assert bench.loader.attempts.count(1) == 1
        assert bench.meaning() == 2


async def test_a_fault_of_the_program_takes_nothing_down(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.loader.broken = {1}
    async with bench.running():
        bench.log.publish(1)
        bench.log.publish(2)
        await until(lambda: bench.registry.num_loaded == 1)
        assert bench.meaning() == 2
    assert "could not be loaded" in caplog.text


async def test_while_the_store_is_away_what_is_loaded_stays(bench: Bench) -> None:
    bench.log.publish(1)
    async with bench.running():
        polls = bench.store.num_polls
        bench.store.unavailable = True
        await until(lambda: bench.store.num_polls > polls + 1)
        bench.log.publish(2)
        assert bench.meaning() == 1
        polls = bench.store.num_polls
        bench.store.unavailable = False
        await until(lambda: bench.meaning() == 2)
        assert bench.store.num_polls > polls


async def test_a_store_that_was_replaced_takes_nothing_away(bench: Bench) -> None:
    bench.log.publish(1)
    async with bench.running():
        polls = bench.store.num_polls
        bench.store.log, bench.store.id = Log(), "second"
        await until(lambda: bench.store.num_polls > polls + 1)
        assert bench.meaning() == 1


async def test_a_flood_of_unknown_names_costs_one_look_at_the_store(bench: Bench) -> None:
    bench.watcher = PromptWatcher(bench.store, bench.registry, bench.loads, NullPromptObserver(), poll_seconds=60)
    async with bench.running():
        bench.log.publish(1)
        polls = bench.store.num_polls
        await asyncio.gather(*(bench.watcher.catch_up() for _ in range(1000)))
        assert bench.registry.index.revision == 1
        assert bench.store.num_polls == polls + 1


async def test_many_requests_for_one_version_load_it_once(bench: Bench) -> None:
    bench.registry.update(bench.log.publish(1, alias=None))
    record = bench.log.record(1)
    first = asyncio.create_task(bench.loads.load(record))
    others = [asyncio.create_task(bench.loads.load(record)) for _ in range(20)]
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.gather(*others)
    assert bench.loader.attempts == [1]
    assert bench.registry.num_loaded == 1


async def test_who_wants_an_absent_version_hears_of_it(bench: Bench) -> None:
    bench.registry.update(bench.log.publish(1, alias=None))
    bench.loader.absent = {1}
    with pytest.raises(Unavailable):
        await bench.loads.load(bench.log.record(1))


@pytest.mark.parametrize("poll_seconds", [0.15, 2.0])
def test_after_ten_minutes_without_the_store_it_catches_up_within_two_polls(
    poll_seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def act() -> tuple[float, int]:
        bench = Bench()
        bench.watcher = PromptWatcher(bench.store, bench.registry, bench.loads, NullPromptObserver(), poll_seconds)
        bench.log.publish(1)
        async with bench.running():
            bench.store.unavailable = True
            await asyncio.sleep(300)
            bench.log.publish(2)
            await asyncio.sleep(300)
            assert bench.meaning() == 1, "what is loaded serves on"
            looks = bench.store.num_polls
            bench.store.unavailable, loop = False, asyncio.get_running_loop()
            returned_at = loop.time()
            while bench.meaning() != 2:
                await asyncio.sleep(0.001)
            return loop.time() - returned_at, looks

    for _ in range(20):  # of the jitter
        seconds, looks = run_in_virtual_time(monkeypatch, act)
        assert seconds <= 2 * poll_seconds
        assert looks <= 600 / poll_seconds, "no more often than while the store is there"
