"""Several replicas that lack workers at the same time."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.clock import Clock
from trainer_service.database.database import Database
from trainer_service.dispatch.allowance import Allowance
from trainer_service.dispatch.scheduler import Plan, WorkerView, plan
from trainer_service.dispatch.worker_targets import WorkerLimits
from trainer_service.jobs.config import JobsConfig
from trainer_service.jobs.fair_queue import QueueHead

CONFIG = JobsConfig(max_workers=2, max_jobs_per_worker=3)
HEADS = [QueueHead("tiny", 1.0, 4), QueueHead("tiny", 1.0, 1, exclusive=True)]
"""Four jobs that may share a worker and one that needs its own: both replicas want two workers."""


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database(f"sqlite:///{tmp_path / 'jobs.sqlite3'}")
    yield opened
    opened.close()


class Replica:
    """The allowance of one replica, and workers that never finish loading."""

    def __init__(
        self,
        database: Database,
        name: str,
        config: JobsConfig = CONFIG,
        heads: Sequence[QueueHead] = HEADS,
        limits: Mapping[str, WorkerLimits] | None = None,
    ) -> None:
        self.heads, self._limits = heads, limits or {}

        async def call(function: Any, *args: Any, **kwargs: Any) -> Any:
            return function(*args, **kwargs)

        store = SimpleNamespace(is_shared=True, database=database)
        context = SimpleNamespace(store=store, config=config, owner=name, database=SimpleNamespace(call=call))
        self._allowance = Allowance(cast(Any, context), cast(Any, SimpleNamespace(until=lambda: 1e9)))
        self.name, self.loading, self.num_stopped = name, dict[str, str](), 0
        self.num_launched = 0
        self.idle_seconds = 0.0
        """Set: its workers have loaded, and had no job for so long."""

    async def round(self) -> None:
        """What the dispatcher does with the plan."""
        views = [
            WorkerView(id, base_model, 0, ready=self.idle_seconds > 0, idle_seconds=self.idle_seconds, fresh=True)
            for id, base_model in self.loading.items()
        ]

        def plan_for(workers: Sequence[WorkerView], most: int) -> Plan:
            here = self._allowance.limits(self._limits)
            return plan(self.heads, workers, max_workers=most, max_jobs_per_worker=3, idle_seconds=60, limits=here)

        decided = await self._allowance.plan(plan_for, views, len(views), self._limits, self.num_of)
        self.num_stopped += len(decided.stops)
        self.loading = {id: base_model for id, base_model in self.loading.items() if id not in decided.stops}
        for base_model in decided.launches:
            self.num_launched += 1
            self.loading[f"{self.name}-{self.num_launched}"] = base_model

    @property
    def num_of(self) -> Counter[str]:
        """Workers by base model."""
        return Counter(self.loading.values())


async def test_two_replicas_that_lack_workers_do_not_stop_each_others_launches(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    replicas = Replica(database, "a"), Replica(database, "b")

    async def rounds() -> list[int]:
        for _ in range(20):
            clock.now += CONFIG.tick_seconds
            for replica in replicas:
                await replica.round()
        return [replica.num_stopped for replica in replicas]

    settled = await rounds()  # the first replica took both places, and gives one to the other
    assert [len(replica.loading) for replica in replicas] == [1, 1]
    assert await rounds() == settled


async def test_the_limits_of_a_base_model_hold_for_all_replicas_together(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    heads = [QueueHead("small", 1.0, 40), QueueHead("large", 2.0, 40)]
    limits = {"large": WorkerLimits(most=2), "kept": WorkerLimits(least=1)}
    replicas = [Replica(database, name, JobsConfig(max_workers=8), heads, limits) for name in "abc"]

    async def rounds(number: int) -> Counter[str]:
        for _ in range(number):
            clock.now += CONFIG.tick_seconds
            for replica in replicas:
                await replica.round()
                assert sum((other.num_of for other in replicas), Counter[str]())["large"] <= 2
        return sum((replica.num_of for replica in replicas), Counter[str]())

    assert await rounds(30) == {"small": 5, "large": 2, "kept": 1}
    stopped = [replica.num_stopped for replica in replicas]
    assert await rounds(20) == {"small": 5, "large": 2, "kept": 1}
    assert [replica.num_stopped for replica in replicas] == stopped, "they don't take each other's workers in turns"
    for replica in replicas:
        replica.heads = []
    assert (await rounds(20))["kept"] == 1


@pytest.mark.parametrize("later", "ac")
async def test_a_kept_worker_survives_the_start_of_another_replica(database: Database, later: str) -> None:
    limits = {"kept": WorkerLimits(least=1)}
    keeper = Replica(database, "b", heads=[], limits=limits)
    for _ in range(3):
        await keeper.round()
    keeper.idle_seconds = 3600.0
    await keeper.round()
    other = Replica(database, later, heads=[], limits=limits)
    for _ in range(3):  # in the first round, `other` does not know yet that a worker runs
        await other.round()
        await keeper.round()
    assert (keeper.num_of, keeper.num_stopped, other.num_launched) == ({"kept": 1}, 0, 0)


async def test_of_two_kept_workers_one_stays(database: Database) -> None:
    limits = {"kept": WorkerLimits(least=1)}
    pair = [Replica(database, name, heads=[], limits=limits) for name in "ab"]
    for number, replica in enumerate(pair):
        replica.loading, replica.idle_seconds = {f"worker-{number}": "kept"}, 3600.0
    for _ in range(5):
        for replica in pair:
            await replica.round()
            assert sum(one.num_of["kept"] for one in pair) >= 1
    assert [one.num_of["kept"] for one in pair] == [1, 0]
