"""Kills by the kernel's OOM killer are recognised by its counter."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace

import pytest

from trainer_service.cluster.interface import WorkerLost
from trainer_service.cluster.ray_pool import OomKills, RayWorker


def count(events: Path, kills: int) -> None:
    events.write_text(f"low 0\nhigh 3\nmax 12\noom {kills}\noom_kill {kills}\noom_group_kill 0\n")


def test_each_kill_explains_one_death(tmp_path: Path) -> None:
    events = tmp_path / "memory.events"
    count(events, 7)
    kills = OomKills(events)
    assert not kills.explain_a_death(), "what was killed before this service began is not its workers"
    count(events, 8)
    assert [kills.explain_a_death(), kills.explain_a_death()] == [True, False]


@pytest.mark.parametrize("content", [None, "", "oom_kill many\n", "nothing that can be read"])
def test_where_nothing_is_counted_nothing_is_explained(tmp_path: Path, content: str | None) -> None:
    events = tmp_path / "memory.events"
    if content is not None:
        events.write_text(content)
    kills = OomKills(events)
    assert not kills.explain_a_death()


class DeadActor:
    """Every call raises what Ray raises for a dead actor."""

    def __init__(self) -> None:
        self.poll = self.stop = SimpleNamespace(remote=self._fail)

    def _fail(self, *_: object) -> asyncio.Future[object]:
        from ray.exceptions import ActorDiedError

        future = asyncio.get_running_loop().create_future()
        future.set_exception(ActorDiedError())
        return future


@pytest.mark.parametrize("killed_for_memory", [True, False])
async def test_a_workers_death_is_explained_once_and_the_same_to_all(tmp_path: Path, killed_for_memory: bool) -> None:
    events = tmp_path / "memory.events"
    count(events, 1)
    kills = OomKills(events)
    worker, later = RayWorker("ray-1", "tiny", DeadActor(), kills), RayWorker("ray-2", "tiny", DeadActor(), kills)
    if killed_for_memory:
        count(events, 2)
    for call in (worker.poll(0, 1), worker.stop("job", 1)):
        with pytest.raises(WorkerLost, match="fewer virtual tokens") as lost:
            await call
        assert lost.value.out_of_memory is killed_for_memory
    with pytest.raises(WorkerLost, match="its node is gone") as lost:
        await later.poll(0, 1)
    assert not lost.value.out_of_memory
