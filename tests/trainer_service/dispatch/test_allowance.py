"""Several replicas that lack workers at the same time."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.clock import Clock
from trainer_service.database.database import Database
from trainer_service.dispatch.allowance import Allowance
from trainer_service.dispatch.scheduler import Plan, WorkerView, plan
from trainer_service.jobs.config import JobsConfig
from trainer_service.jobs.fair_queue import QueueHead

CONFIG = JobsConfig(max_workers=2, max_jobs_per_worker=3)
HEADS = [QueueHead("tiny", 1.0, 5, exclusive=1)]
"""Four jobs that may share a worker and one that needs its own: both replicas want two workers."""


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database(f"sqlite:///{tmp_path / 'jobs.sqlite3'}")
    yield opened
    opened.close()


class Replica:
    """The allowance of one replica, and workers that never finish loading."""

    def __init__(self, database: Database, name: str) -> None:
        async def call(function: Any, *args: Any, **kwargs: Any) -> Any:
            return function(*args, **kwargs)

        async def until() -> float:
            return 1e9

        store = SimpleNamespace(is_shared=True, database=database)
        context = SimpleNamespace(store=store, config=CONFIG, owner=name, database=SimpleNamespace(call=call))
        self._allowance = Allowance(cast(Any, context), cast(Any, SimpleNamespace(until=until)))
        self.name, self.loading, self.num_stopped = name, list[str](), 0

    async def round(self) -> None:
        """What the dispatcher does with the plan."""
        views = [WorkerView(id, "tiny", num_jobs=0, ready=False, fresh=True) for id in self.loading]

        def plan_for(workers: Sequence[WorkerView], most: int) -> Plan:
            return plan(HEADS, workers, max_workers=most, max_jobs_per_worker=3, idle_seconds=60)

        decided = await self._allowance.plan(plan_for, views, len(views))
        self.num_stopped += len(decided.stops)
        self.loading = [id for id in self.loading if id not in decided.stops]
        self.loading += [f"{self.name}-{self.num_stopped}-{number}" for number in range(len(decided.launches))]


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
