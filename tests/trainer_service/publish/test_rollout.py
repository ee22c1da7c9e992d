"""How long a finished job waits until its version is served, if clocks disagree or are set meanwhile."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from shared.process.call_pool import CallPool
from shared.store.commit import VersionSummary
from shared.store.index import VersionRecord
from shared.store.memory import MemoryBackend
from shared.store.store import PromptStore
from trainer_service.publish import rollout

DAY = timedelta(days=1)


@pytest.fixture
def pool() -> Iterator[CallPool]:
    pool = CallPool("prompt_store")
    yield pool
    pool.close()


@pytest.mark.parametrize("age", [DAY, -DAY], ids=["publisher a day behind", "publisher a day ahead"])
async def test_a_publishers_clock_never_lengthens_the_wait(age: timedelta, pool: CallPool) -> None:
    started, asked = time.monotonic(), list[None]()

    async def never() -> bool:
        asked.append(None)
        return False

    status = await rollout.wait_until_served(PromptStore(MemoryBackend()), pool, _version(age), 0.3, never)
    assert not status.is_decided
    if age > timedelta(0):
        assert not asked, "a version of yesterday is looked for once"
    else:
        assert time.monotonic() - started >= 0.3


async def test_setting_the_clock_back_does_not_lengthen_the_wait(
    pool: CallPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    actual = time.time

    async def never_and_set_the_clock_back() -> bool:
        monkeypatch.setattr(time, "time", lambda: actual() - 86_400)
        return False

    store, version = PromptStore(MemoryBackend()), _version(timedelta(0))
    await rollout.wait_until_served(store, pool, version, 0.3, never_and_set_the_clock_back)


def _version(age: timedelta) -> VersionRecord:
    stamp = (datetime.now(UTC) - age).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    digest = "sha256:" + "1" * 64
    return VersionRecord("tone", 1, digest, 10, "tuningJobs/1", stamp, 1, VersionSummary("tiny", digest, 4, 8))
