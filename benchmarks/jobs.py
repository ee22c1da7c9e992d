"""The job store and the job manager under load: latencies at 10, 1,000 and 100,000 jobs, watchers, time to the first step.

    python -m benchmarks.jobs                                     SQLite in a temporary directory
    python -m benchmarks.jobs --database postgresql://...         an empty database
    python -m benchmarks.jobs --model DIRECTORY                   and the time from submission to the first step, on Ray

Writes Markdown tables to standard output. Latencies are in milliseconds, as the caller of the manager sees them, in this process.
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import insert

from shared import base_model
from shared.base_model import BaseModelInfo
from shared.store.memory import MemoryBackend
from shared.store.store import PromptStore
from shared.template import Template
from trainer_service.cluster.interface import WorkerHandle, WorkerPool
from trainer_service.jobs.config import JobsConfig
from trainer_service.jobs.manager import JobManager, files_for
from trainer_service.jobs.model import EffectiveSpec, Job, JobFilter, TuningSpec, new_job_id
from trainer_service.jobs.record import Record, queue_key, to_datetime, to_row
from trainer_service.jobs.schema import job_annotations, job_events, jobs
from trainer_service.jobs.states import JobState
from trainer_service.jobs.store import JobStore
from trainer_service.training.recipe import fill
from trainer_service.training.spec import Example, HyperparameterRequest, TaskKind, TrainingSpec

CONFIG = JobsConfig(max_queued_jobs=1_000_000, max_active_jobs_per_caller=1_000_000, progress_seconds=0.0)
STATES = (JobState.SUCCEEDED, JobState.SUCCEEDED, JobState.SUCCEEDED, JobState.FAILED, JobState.QUEUED)
NUM_WATCHERS, NUM_QUEUED = 50, 2000
UNKNOWN = BaseModelInfo(
    id="none",
    fingerprint="sha256:" + "0" * 64,
    tokenizer_digest="sha256:" + "0" * 64,
    architecture="LlamaForCausalLM",
    hidden_size=576,
    vocab_size=49152,
    num_layers=30,
    max_positions=2048,
)


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


class NoWorkers(WorkerPool):
    """Jobs stay queued."""

    async def start(self) -> None: ...

    async def launch(self, base_model: str) -> WorkerHandle:
        await asyncio.Event().wait()
        raise AssertionError("never")

    async def close(self) -> None: ...


class Examples:
    def read(self, name: str) -> tuple[Example, ...]:
        return tuple(Example(line=line, input=f"question {line}", output=f"answer {line}") for line in range(1, 65))


class Admission:
    def __init__(self, info: BaseModelInfo) -> None:
        self._info = info

    async def check(self, spec: TuningSpec) -> EffectiveSpec:
        hyperparameters = fill(spec.hyperparameters, TaskKind.GENERATION, 48, self._info, Template())
        training = TrainingSpec(task=TaskKind.GENERATION, template=Template(), hyperparameters=hyperparameters)
        return EffectiveSpec(base_model=self._info, training=training, validation_fraction=0.25, max_runtime_seconds=3600)


def spec(number: int, **hyperparameters: Any) -> TuningSpec:
    return TuningSpec(
        prompt=f"prompt-{number % 100}",
        dataset="datasets/sha256-" + "0" * 64,
        annotations={"team": f"team-{number % 50}"},
        hyperparameters=HyperparameterRequest(**hyperparameters),
    )


@asynccontextmanager
async def running(url: str, directory: Path, pool: WorkerPool, info: BaseModelInfo) -> AsyncIterator[tuple[JobManager, JobStore]]:
    store = JobStore.open(url)
    files = files_for(store, directory / "checkpoints")
    manager = JobManager(store, Admission(info), Examples(), PromptStore(MemoryBackend()), pool, CONFIG, files=files)
    await manager.start()
    try:
        yield manager, store
    finally:
        await manager.drain(5)


async def timed(call: Callable[[int], Awaitable[Any]], count: int) -> str:
    """`median / 99th percentile` in milliseconds."""
    samples = []
    for number in range(count):
        started = time.perf_counter()
        await call(number)
        samples.append((time.perf_counter() - started) * 1000)
    samples.sort()
    return f"{statistics.median(samples):.1f} / {samples[int(len(samples) * 0.99)]:.1f}"


async def fill_store(store: JobStore, count: int, effective: EffectiveSpec) -> None:
    """Rows as jobs would leave them, written in bulk."""

    def write() -> None:
        now = time.time()
        for first in range(0, count, 5000):
            rows, events, annotations = [], [], []
            for number in range(first, min(first + 5000, count)):
                state = STATES[number % len(STATES)]
                ended = to_datetime(now) if state.is_terminal else None
                tuning = spec(number)
                job = Job(id=new_job_id(), spec=tuning, effective=effective, state=state, create_time=to_datetime(now), end_time=ended)
                record = Record(job.model_copy(update={"last_event": 1}), queue_key=queue_key(0, now + number))
                rows.append(to_row(record))
                payload = record.job.model_dump_json()
                events.append({"job_id": job.id, "number": 1, "time": now, "kind": "state_changed", "payload": payload})
                annotations += [{"job_id": job.id, "key": key, "value": value} for key, value in tuning.annotations.items()]
            with store.database.write() as connection:
                connection.execute(insert(jobs), rows)
                connection.execute(insert(job_events), events)
                connection.execute(insert(job_annotations), annotations)

    await asyncio.to_thread(write)


async def latencies(manager: JobManager, store: JobStore) -> None:
    say("\n| jobs | create | get | list 50 | list 50 queued | list 50 of a prompt | list 50 of a team | 1000 a page |")
    say("|---|---|---|---|---|---|---|---|")
    effective = await Admission(UNKNOWN).check(spec(0))
    queued = JobFilter(states=frozenset({JobState.QUEUED}))
    total = 0
    for size in (10, 1_000, 100_000):
        await fill_store(store, size - total, effective)
        total = size
        made: list[str] = []

        async def create(number: int, made: list[str] = made) -> None:
            made.append((await manager.create(spec(number), request_id=new_job_id(), caller="bench")).id)

        cells = [
            await timed(create, 100),
            await timed(lambda number, made=made: manager.get(made[number]), 100),  # type: ignore[misc]
            await timed(lambda _: manager.list(JobFilter(), 50), 50),
            await timed(lambda _: manager.list(queued, 50), 50),
            await timed(lambda number: manager.list(JobFilter(prompt=f"prompt-{number}"), 50), 50),
            await timed(lambda number: manager.list(JobFilter(annotations={"team": f"team-{number}"}), 50), 50),
            await timed(lambda _: manager.list(JobFilter(), 1000), 5),
        ]
        total += 100
        say(f"| {size:,} | " + " | ".join(cells) + " |")


async def watchers(manager: JobManager) -> None:
    """Fifty watchers of one job each, while thousands are created beside them."""
    watched = [(await manager.create(spec(number), caller="bench")).id for number in range(NUM_WATCHERS)]
    delays: list[float] = []
    cancelled_at: dict[str, float] = {}

    async def watch(job_id: str) -> None:
        async for _ in manager.watch(job_id):
            pass
        delays.append((time.perf_counter() - cancelled_at[job_id]) * 1000)

    tasks = [asyncio.create_task(watch(job_id)) for job_id in watched]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    created = await timed(lambda number: manager.create(spec(number), caller="bench"), NUM_QUEUED)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    for job_id in watched:
        cancelled_at[job_id] = time.perf_counter()
        await manager.cancel(job_id)
    await asyncio.gather(*tasks)
    delays.sort()
    say(f"\n{NUM_QUEUED} jobs created beside {NUM_WATCHERS} watchers: {created} ms each; the process grew by {grown:.0f} MiB.")
    say(f"From a cancellation to its event at the watcher: median {statistics.median(delays):.1f} ms, worst {delays[-1]:.1f} ms.")


async def first_step(url: str, directory: Path, model: Path) -> None:
    from trainer_service.cluster.ray_cluster import RayCluster
    from trainer_service.cluster.ray_pool import RayPool, RayPoolConfig

    info = base_model.inspect(model, id="bench")
    started = time.perf_counter()
    pool = RayPool(RayCluster(), RayPoolConfig({"bench": str(model)}))
    async with running(url, directory, pool, info) as (manager, _):
        say(f"\nRay started in {time.perf_counter() - started:.1f} s.")
        for temperature in ("cold", "warm"):
            started = time.perf_counter()
            job = await manager.create(spec(0, num_steps=2, evaluation_interval_steps=2, batch_size=2))
            marks: dict[str, float] = {}
            async for event in manager.watch(job.id):
                seconds = time.perf_counter() - started
                if isinstance(event.payload, Job):
                    marks.setdefault(event.payload.state.value, seconds)
                else:
                    marks.setdefault(event.kind.value, seconds)
            say(f"Worker {temperature}: " + ", ".join(f"{name} after {seconds:.2f} s" for name, seconds in marks.items()))


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--database", default="", help="SQLAlchemy URL of an empty database; default: SQLite in a temporary directory")
    parser.add_argument("--model", type=Path, help="base model directory, for the time to the first step")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="softprompt-bench-") as name:
        directory = Path(name)
        url = arguments.database or f"sqlite:///{directory / 'jobs.sqlite3'}"
        async with running(url, directory, NoWorkers(), UNKNOWN) as (manager, store):
            await latencies(manager, store)
            await watchers(manager)
        if arguments.model:
            await first_step(f"sqlite:///{directory / 'first.sqlite3'}", directory, arguments.model)


if __name__ == "__main__":
    asyncio.run(main())
