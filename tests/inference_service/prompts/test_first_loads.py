"""A replica is ready when the versions of recently used prompts are loaded, however many others there are."""

from __future__ import annotations

import asyncio

import pytest

from inference_service.prompts.first_loads import StartLimits, left_for_later, recently_used
from inference_service.prompts.watcher import PromptWatcher
from shared.names import PromptReference
from shared.prompt.manifest import utc_now
from shared.store.replicas import ReplicaRecord
from shared.values.enums import LoadedState
from tests.inference_service.prompts.fakes import NullPromptObserver
from tests.inference_service.prompts.test_watcher import Bench
from tests.waiting import until


def replica(id: str, *recent: str) -> ReplicaRecord:
    return ReplicaRecord(id=id, started_at=utc_now(), recent=recent)


def bench_with(limits: StartLimits, num_prompts: int) -> Bench:
    bench = Bench()
    for number in range(num_prompts):
        bench.log.publish(1, prompt=f"p{number:04}")
    bench.watcher = PromptWatcher(bench.store, bench.registry, bench.loads, NullPromptObserver(), 0.005, limits=limits)
    return bench


async def test_of_a_thousand_aliased_versions_those_of_recently_used_prompts_are_loaded_first() -> None:
    bench = bench_with(StartLimits(max_versions=10), 1000)
    bench.store.replicas = [replica("a", "p0003", "p0500"), replica("b", "p0007")]
    async with bench.running():
        loaded = {version.record.prompt for version, _ in bench.registry.decided()}
        assert loaded == {"p0003", "p0007", "p0500", *(f"p{number:04}" for number in range(993, 1000))}
        assert bench.registry.num_aliases_behind == 0
        assert bench.registry.wanted() == []
        (status,) = bench.registry.statuses("p0100")
        assert status.state is LoadedState.KNOWN


async def test_others_are_loaded_by_the_first_request_and_news_of_them_at_once() -> None:
    bench = bench_with(StartLimits(max_versions=10), 100)
    async with bench.running():
        record = bench.registry.resolve(PromptReference.parse("p0001"))
        with bench.registry.hold(record) as version:
            assert version is None
        await bench.loads.load(record)
        with bench.registry.hold(record) as version:
            assert version is not None
        assert bench.registry.recent(1) == ["p0001"]
        bench.log.publish(2, prompt="p0002")
        await until(
            lambda: (
                bench.registry.resolve(PromptReference.parse("p0002")).version == 2 and bench.registry.num_loaded == 12
            )
        )
        assert bench.registry.num_aliases_behind == 0
        bench.log.publish(1, prompt="news")  # another look at the store wakes none of those that wait
        await until(lambda: bench.registry.num_loaded == 13)
        await asyncio.sleep(0)
        assert bench.registry.wanted() == []


async def test_a_load_that_takes_too_long_does_not_keep_the_replica_from_being_ready(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = bench_with(StartLimits(max_versions=0, max_seconds=0.05), 3)
    go, load = asyncio.Event(), bench.loader.load

    async def slow(record: object) -> object:
        await go.wait()
        return await load(record)  # type: ignore[arg-type]

    monkeypatch.setattr(bench.loader, "load", slow)
    async with bench.running():
        assert bench.registry.num_loaded == 0
        assert bench.registry.num_aliases_behind == 3
        go.set()
        await until(lambda: bench.registry.num_loaded == 3)
        assert bench.registry.num_aliases_behind == 0


def test_few_versions_are_all_loaded_and_the_default_alias_comes_first() -> None:
    log = Bench().log
    log.publish(1, prompt="old")
    log.publish(1, prompt="tone", alias="canary")
    log.publish(1, prompt="new")
    assert left_for_later(log.index, [], 3) == {}
    assert left_for_later(log.index, [], 0) == {}
    assert left_for_later(log.index, [], 2).keys() == {("tone", "canary")}
    assert left_for_later(log.index, ["old"], 1).keys() == {("new", "default"), ("tone", "canary")}


def test_the_fleets_lists_take_turns() -> None:
    assert recently_used([replica("a", "x", "y"), replica("b", "z"), replica("c", "x", "w", "v")]) == [
        "x",
        "z",
        "y",
        "w",
        "v",
    ]
