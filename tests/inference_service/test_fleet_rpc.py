"""Two replicas over one store: rollbacks within a second, and what each reports to the fleet."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from shared.store.fleet import serving
from tests.inference_service.replica import Replica, blob, matrix, publish, running_replica
from tests.tiny_models import save_tiny_llama
from tests.waiting import until

V1, V2 = (f"prompts/tone/versions/{number}" for number in (1, 2))
AS_SET_UP = {"poll_seconds": 0.0}
"""The default interval between two looks at a directory: 0.15 s."""


@asynccontextmanager
async def fleet(model_dir: Path, directory: Path) -> AsyncIterator[tuple[Replica, Replica]]:
    store = directory / "store"
    async with (
        running_replica(model_dir, directory / "a", store_dir=store, replica="a", **AS_SET_UP) as first,
        running_replica(model_dir, directory / "b", store_dir=store, replica="b", **AS_SET_UP) as second,
    ):
        yield first, second


async def served_by_both(replicas: tuple[Replica, Replica], version: str) -> None:
    async def is_served() -> bool:
        return {await replica.served_version() for replica in replicas} == {version}

    await until(is_served)


async def test_a_rollback_is_seen_by_every_replica(tiny_model_dir: Path, tmp_path: Path) -> None:
    async with fleet(tiny_model_dir, tmp_path) as replicas:
        store = replicas[0].store
        for seed in (1, 2):
            publish(store, blob(tiny_model_dir, matrix(seed)))
        await served_by_both(replicas, V2)
        for version, name in ((1, V1), (2, V2)) * 3:  # within two polls, see test_watch
            await asyncio.to_thread(store.set_alias, "tone", "default", version)
            await served_by_both(replicas, name)


async def test_the_fleet_agrees_or_names_the_replica_that_refused_and_its_reason(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    other = save_tiny_llama(tmp_path / "other", seed=1)
    async with (
        fleet(tiny_model_dir, tmp_path) as replicas,
        running_replica(other, tmp_path / "c", store_dir=tmp_path / "store", replica="c", **AS_SET_UP),
    ):
        store, began = replicas[0].store, time.monotonic()
        record = publish(store, blob(tiny_model_dir, matrix(1)))
        stands = await until(
            lambda: (found := serving(record, store.list_replicas())).by_all and found.refused and found
        )
        assert sorted(replica for replica, _ in stands.served) == ["a", "b"]
        seconds = time.monotonic() - began
        assert all(0 <= (item.publish_to_served_seconds or 0) <= seconds + 1 for _, item in stands.served)
        assert [replica for replica, _ in stands.refused] == ["c"]
        assert stands.refused[0][1].reason.startswith("base_model: tuned for")
        assert stands.num_refused == 0, "a replica of another model is not one that should serve it"

        narrow = publish(store, blob(tiny_model_dir, matrix(2, hidden_size=48)))
        stands = await until(lambda: (found := serving(narrow, store.list_replicas())).num_refused == 2 and found)
        assert (stands.by_all, stands.is_decided) == (False, True)
        assert "hidden size 48" in str(stands)
        replicas[1].stop.set()
        await until(lambda: serving(record, store.list_replicas()).num_replicas == 1)
        assert serving(record, store.list_replicas()).by_all


@pytest.mark.parametrize("interval", [1, 60])
async def test_a_replica_is_live_for_three_of_its_own_heartbeats(
    tiny_model_dir: Path, tmp_path: Path, interval: float
) -> None:
    async with running_replica(tiny_model_dir, tmp_path, heartbeat_seconds=interval, replica="a") as replica:
        (record,) = await until(replica.store.list_replicas)
        assert record.heartbeat_seconds == interval
