"""One Ray cluster for the whole test session, because starting it takes seconds."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from trainer_service.cluster.ray_cluster import RayCluster


class SharedCluster(RayCluster):
    """Keeps running after the pools that use it."""

    async def start(self) -> None:
        if not self.resources:
            await super().start()

    async def close(self) -> None: ...

    async def end(self) -> None:
        await super().close()


@pytest.fixture(scope="session", autouse=True)
def ray_environment() -> None:
    """Ray reads the variable when it is imported, which some tests do before a cluster starts."""
    RayCluster().set_environment()


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[SharedCluster]:
    cluster = SharedCluster()
    asyncio.run(cluster.start())
    yield cluster
    asyncio.run(cluster.end())
