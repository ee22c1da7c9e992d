"""Two trainer processes on one PostgreSQL, each with its own Ray: one is suspended for a while, one is killed."""

from __future__ import annotations

import asyncio
import os
import signal
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from shared.errors import Unavailable
from shared.store import open_store
from tests import recovery
from tests.trainer_service.cluster.processes import Caller, State, TrainerProcess, channel_to, until_gone
from tests.trainer_service.job_service import expire_leases
from tests.trainer_service.postgres import Postgres
from tests.waiting import until
from trainer_service.database.schema import jobs
from trainer_service.jobs.model import Job
from trainer_service.jobs.states import JobState
from trainer_service.jobs.store.job_store import JobStore

pytestmark = pytest.mark.ray

LEASE_SECONDS = 3 if recovery.IS_MEASURED else 20
"""Long enough for a trainer on a busy machine to renew it; tests expire those of a trainer that is away."""
SLACK_SECONDS = 120.0
"""What a busy machine may add; without leases, the jobs would never move."""


@pytest.fixture
def url(postgres: Postgres) -> str:
    return postgres.create_database(f"test_{uuid.uuid4().hex}")


@pytest.fixture
def pair(url: str, tmp_path: Path, tiny_model_dir: Path) -> Iterator[tuple[TrainerProcess, TrainerProcess]]:
    settings: dict[str, Any] = {
        "DATABASE_URL": url,
        "LEASE_SECONDS": LEASE_SECONDS,
        "MAX_JOBS_PER_WORKER": 2,
        "MAX_WORKERS": 2,
    }
    made = (
        TrainerProcess(tmp_path, tiny_model_dir, "one", **settings),
        TrainerProcess(tmp_path, tiny_model_dir, "two", **settings),
    )
    yield made
    for trainer in made:
        trainer.kill()


async def test_what_a_dead_or_a_silent_trainer_had_is_done_once_by_the_other(
    pair: tuple[TrainerProcess, TrainerProcess], url: str, tmp_path: Path
) -> None:
    store = JobStore.open(url)
    await asyncio.gather(*(trainer.start() for trainer in pair))
    async with channel_to(pair[0]) as channel:
        name = await Caller(channel).create(num_steps=600, prompt="silent")
        await Caller(channel).reach(name, 20)
    one, two = sorted(pair, key=lambda trainer: not jobs_of(trainer, store))
    stopped_at = time.time()
    os.kill(one.process.pid, signal.SIGSTOP)
    await expire(one, store)
    async with channel_to(two) as second:
        caller = Caller(second)
        again = await caller.reach(name, 21, attempt=2)
        recovery.note(f"trainer silent, lease of {LEASE_SECONDS} s: training again on another one", again - stopped_at)
        assert taken_after(stopped_at, name, store) < 1.25 * LEASE_SECONDS + SLACK_SECONDS
        done = await caller.ended(name)
        assert (done.state, done.attempt) == (State.STATE_SUCCEEDED, 2)
    os.kill(one.process.pid, signal.SIGCONT)
    async with channel_to(one) as channel:
        # It is too late: its worker reports for an old attempt, which is ignored. It serves on and takes new jobs.
        late = await Caller(channel).ended(name)
        assert (late.attempt, late.result.version) == (2, done.result.version)
        names = [await Caller(channel).create(num_steps=600, prompt=f"shared-{number}") for number in range(3)]
        await until(lambda: bool(jobs_of(one, store)))

    os.kill(one.process.pid, signal.SIGSTOP)  # else its jobs might end now
    processes, taken = one.descendants(), jobs_of(one, store)
    killed_at = time.time()
    await expire(one, store)
    one.kill()
    async with channel_to(two) as second:
        caller = Caller(second)
        ended = await asyncio.gather(*(caller.ended(name) for name in names))
        moved = [await caller.reach(name, 1, attempt=2) for name in taken]
        recovery.note(
            f"trainer killed, lease of {LEASE_SECONDS} s: training again on another one", min(moved) - killed_at
        )
    assert all(taken_after(killed_at, name, store) < 1.25 * LEASE_SECONDS + SLACK_SECONDS for name in taken)
    assert all(job.state == State.STATE_SUCCEEDED and job.attempt == 1 + (job.name in taken) for job in ended)
    await until_gone(processes)
    index = open_store(str(tmp_path / "data" / "prompts")).index()
    assert {prompt: sorted(found.versions) for prompt, found in index.prompts.items()} == {
        "silent": [1],
        **{f"shared-{number}": [1] for number in range(3)},
    }
    processes = two.descendants()
    assert two.terminate() == 0
    await until_gone(processes)
    store.close()


def taken_after(fault_at: float, name: str, store: JobStore) -> float:
    """Seconds until the job was queued again."""
    events = store.events(name.removeprefix("tuningJobs/"), 0)
    _, again, *_ = [
        event.time for event in events if isinstance(event.payload, Job) and event.payload.state is JobState.QUEUED
    ]
    return again.timestamp() - fault_at


def owner_of(trainer: TrainerProcess) -> str:
    """A part of its name as an owner of leases."""
    return f"-{trainer.process.pid}-"


async def expire(trainer: TrainerProcess, store: JobStore) -> None:
    """As if it had been away for longer than its leases.

    A trainer that was suspended in the middle of a transaction keeps its rows locked until PostgreSQL ends the idle
    transaction, which takes longer than a statement may wait.
    """

    def expired() -> bool:
        try:
            expire_leases(store, owner_of(trainer))
        except Unavailable:
            return False
        return True

    if not recovery.IS_MEASURED:
        await until(expired)


def jobs_of(trainer: TrainerProcess, store: JobStore) -> list[str]:
    """The jobs on its workers, according to the leases."""
    owned = jobs.c.owner.contains(owner_of(trainer))
    query = select(jobs.c.id).where(jobs.c.state == "RUNNING", owned, jobs.c.trained.is_(False))
    with store.database.read() as connection:
        return [f"tuningJobs/{id}" for id in connection.scalars(query)]
