"""Measures creating, reading, listing and watching with a store of 10, 1,000 and 100,000 jobs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import insert, text

from benchmarks.jobs.parts import UNKNOWN, Admission, Examples, NoWorkers, a_second, spec, spread, timed
from shared.store.memory import MemoryBackend
from shared.store.store import PromptStore
from shared.values.base_model import BaseModelInfo
from trainer_service.cluster.interface import WorkerPool
from trainer_service.database.schema import job_annotations, job_events, jobs
from trainer_service.dispatch.manager import JobManager
from trainer_service.jobs.config import JobsConfig
from trainer_service.jobs.model import EffectiveSpec, Job, JobFilter, JobOrder, new_job_id
from trainer_service.jobs.record import Record, queue_key, to_datetime, to_row
from trainer_service.jobs.states import JobState
from trainer_service.jobs.store.files import files_for
from trainer_service.jobs.store.job_store import JobStore

CONFIG = JobsConfig(progress_seconds=0.0)
STATES = (JobState.QUEUED, *[JobState.SUCCEEDED] * 15, *[JobState.FAILED] * 4)
"""Of 100,000 jobs, 5,000 are queued, half of the default limit. The others have ended."""

SIZES = (10, 1_000, 100_000)


@asynccontextmanager
async def running(
    url: str, directory: Path, pool: WorkerPool, info: BaseModelInfo
) -> AsyncIterator[tuple[JobManager, JobStore]]:
    store = JobStore.open(url)
    files = files_for(store.database, directory / "checkpoints")
    prompts, datasets = PromptStore(MemoryBackend()), Examples(directory)
    manager = JobManager(store, Admission(info), datasets.file, prompts, pool, CONFIG, files=files)
    await manager.start()
    try:
        yield manager, store
    finally:
        await manager.drain(5)


async def fill_store(store: JobStore, count: int, effective: EffectiveSpec) -> None:
    """Writes the rows of finished and queued jobs in bulk."""

    def write() -> None:
        now = time.time()
        for first in range(0, count, 5000):
            rows, events, annotations = [], [], []
            for number in range(first, min(first + 5000, count)):
                state = STATES[number % len(STATES)]
                ended = to_datetime(now) if state.is_final else None
                tuning = spec(number)
                job = Job(
                    id=new_job_id(),
                    spec=tuning,
                    effective=effective,
                    state=state,
                    create_time=to_datetime(now),
                    end_time=ended,
                )
                record = Record(job.model_copy(update={"last_event": 1}), queue_key=queue_key(0, now + number))
                rows.append(to_row(record))
                payload = record.job.model_dump_json()
                events.append({"job_id": job.id, "number": 1, "time": now, "kind": "state_changed", "payload": payload})
                annotations += [
                    {"job_id": job.id, "key": key, "value": value} for key, value in tuning.annotations.items()
                ]
            with store.database.write() as connection:
                connection.execute(insert(jobs), rows)
                connection.execute(insert(job_events), events)
                connection.execute(insert(job_annotations), annotations)
        if not store.database.is_sqlite:  # autovacuum would do this a minute later; real jobs never arrive this fast
            with store.database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                connection.execute(text("VACUUM ANALYZE"))

    await asyncio.to_thread(write)


async def measure(url: str, directory: Path) -> list[dict[str, Any]]:
    """One entry per store size."""
    async with running(url, directory, NoWorkers(), UNKNOWN) as (manager, store):
        effective = await Admission(UNKNOWN).check(spec(0))
        found, total = list[dict[str, Any]](), 0
        for size in SIZES:
            await fill_store(store, size - total, effective)
            figures = await latencies(manager, size)
            found.append({"jobs": size, **figures})
            total = size + figures.pop("created")
        return found


async def latencies(manager: JobManager, size: int) -> dict[str, Any]:
    made: list[str] = []
    queued = frozenset({JobState.QUEUED})

    async def create(number: int) -> None:
        made.append((await manager.create(spec(number), request_id=new_job_id())).id)

    async def past_events(number: int) -> None:
        await anext(manager.watch(made[number]))

    return {
        "create_ms": await timed(create, 100),
        "get_ms": await timed(lambda number: manager.get(made[number]), 100),
        "list_50_ms": await timed(lambda _: manager.list(JobFilter(), 50), 50),
        "list_50_queued_ms": await timed(lambda _: manager.list(JobFilter(states=queued), 50), 50),
        "list_50_of_a_prompt_ms": await timed(
            lambda number: manager.list(JobFilter(prompt=f"prompt-{number}"), 50), 50
        ),
        "list_50_of_a_label_ms": await timed(
            lambda number: manager.list(JobFilter(annotations={"team": f"team-{number}"}), 50), 50
        ),
        "list_50_oldest_first_ms": await timed(lambda _: manager.list(JobFilter(order=JobOrder.OLDEST_FIRST), 50), 50),
        "list_1000_ms": await timed(lambda _: manager.list(JobFilter(), 1000), 5),
        "watch_first_event_ms": await timed(past_events, 50),
        "watch_news_ms": await news(manager, made[:50]),
        "creates_a_second": await a_second(create, 200),
        "gets_a_second": await a_second(lambda number: manager.get(made[number % 100]), 400),
        "created": len(made),
    }


async def news(manager: JobManager, ids: list[str]) -> dict[str, float]:
    """Times from a cancellation to its event at the job's watcher, with all cancellations concurrent."""
    cancelled_at: dict[str, float] = {}
    delays: list[float] = []
    watching = asyncio.Semaphore(0)

    async def watch(job_id: str) -> None:
        async for event in manager.watch(job_id):
            if event.number == 1:
                watching.release()
        delays.append((time.perf_counter() - cancelled_at[job_id]) * 1000)

    tasks = [asyncio.create_task(watch(job_id)) for job_id in ids]
    for _ in ids:
        await watching.acquire()
    for job_id in ids:
        cancelled_at[job_id] = time.perf_counter()
        await manager.cancel(job_id)
    await asyncio.gather(*tasks)
    return spread(delays)
