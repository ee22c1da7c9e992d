"""Two trainers on one PostgreSQL, each a process of its own with its own Ray: one is stopped and comes back late, one is killed."""

from __future__ import annotations

import asyncio
import os
import signal
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.store import open_store
from tests import recovery
from tests.trainer_service.cluster.processes import Caller, State, TrainerProcess, channel_to, until_gone
from tests.trainer_service.jobs.postgres import Postgres

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]

LEASE_SECONDS = 3


@pytest.fixture
def pair(postgres: Postgres, tmp_path: Path, tiny_model_dir: Path) -> Iterator[tuple[TrainerProcess, TrainerProcess]]:
    url = postgres.create_database(f"test_{uuid.uuid4().hex}")
    settings = {"DATABASE_URL": url, "LEASE_SECONDS": LEASE_SECONDS, "CPUS_PER_WORKER": 1, "MAX_JOBS_PER_WORKER": 2}
    made = TrainerProcess(tmp_path, tiny_model_dir, "one", **settings), TrainerProcess(tmp_path, tiny_model_dir, "two", **settings)
    yield made
    for trainer in made:
        trainer.kill()


async def test_what_a_dead_or_a_silent_trainer_had_is_done_once_by_the_other(
    pair: tuple[TrainerProcess, TrainerProcess], tmp_path: Path
) -> None:
    one, two = pair
    await one.start()
    async with channel_to(one) as channel:
        name = await Caller(channel).create(num_steps=900, prompt="silent")
        await Caller(channel).reach(name, 20)
        await two.start()
        stopped_at = time.time()
        os.kill(one.process.pid, signal.SIGSTOP)
        async with channel_to(two) as second:
            caller = Caller(second)
            again = await caller.reach(name, 21, attempt=2)
            recovery.note(f"trainer silent, lease of {LEASE_SECONDS} s: training again on another one", again - stopped_at)
            done = await caller.ended(name)
            assert (done.state, done.attempt) == (State.STATE_SUCCEEDED, 2)
        os.kill(one.process.pid, signal.SIGCONT)
        # Late now: what its worker tells belongs to an attempt that no longer counts. It goes on serving, and takes new jobs.
        late = await Caller(channel).ended(name)
        assert (late.attempt, late.result.version) == (2, done.result.version)
        names = [await Caller(channel).create(num_steps=900, prompt=f"shared-{number}") for number in range(4)]
        await asyncio.gather(*(Caller(channel).reach(name, 20) for name in names))

    processes = one.descendants()
    killed_at = time.time()
    one.kill()
    async with channel_to(two) as second:
        caller = Caller(second)
        ended = await asyncio.gather(*(caller.ended(name) for name in names))
        moved = [job for job in ended if job.attempt > 1]
        assert moved
        taken = [await caller.reach(job.name, 1, attempt=2) for job in moved]
        recovery.note(f"trainer killed, lease of {LEASE_SECONDS} s: training again on another one", min(taken) - killed_at)
    assert all(job.state == State.STATE_SUCCEEDED and job.attempt <= 2 for job in ended)
    await until_gone(processes)
    store = open_store(str(tmp_path / "data" / "prompts"))
    assert {prompt: sorted(found.versions) for prompt, found in store.index().prompts.items()} == {
        "silent": [1],
        **{f"shared-{number}": [1] for number in range(4)},
    }
    processes = two.descendants()
    assert two.terminate() == 0
    await until_gone(processes)
