"""Real workers on a real Ray, with a real cohort on a tiny model, and real kills."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import time
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from shared.model import base_model
from shared.prompt.blob import decode_blob
from tests import recovery
from tests.tiny_models import save_tiny_llama
from tests.trainer_service.builders import effective_spec, spec
from tests.trainer_service.cluster.conftest import SharedCluster
from tests.trainer_service.job_service import Service
from tests.waiting import until
from trainer_service.cluster.interface import WorkerLost
from trainer_service.cluster.ray_pool import RayPool
from trainer_service.cluster.settings import WorkerSettings
from trainer_service.jobs.model import Job, Note
from trainer_service.jobs.states import JobState

pytestmark = pytest.mark.ray


@pytest.fixture
def pool(ray_cluster: SharedCluster, tiny_model_dir: Path) -> RayPool:
    settings = WorkerSettings(dtype="float32", device="cpu", max_workers=2, checkpoint_seconds=0.2)
    return RayPool(ray_cluster, {"tiny": str(tiny_model_dir)}, settings)


@pytest.fixture
async def service(tmp_path: Path, tiny_model_dir: Path, pool: RayPool) -> AsyncIterator[Service]:
    made = Service(tmp_path, effective_spec(base_model.inspect(tiny_model_dir, id="tiny")))
    yield made
    await made.drain()


async def pids_of(pool: RayPool) -> list[int]:
    """The processes of the pool's living workers."""
    found = []
    for worker in tuple(pool._workers):  # others start and end meanwhile
        with contextlib.suppress(WorkerLost):
            found.append(int((await worker.poll(0, 0)).details["pid"]))
    return found


async def pid_of(pool: RayPool) -> int:
    [pid] = await pids_of(pool)
    return pid


async def suspended(service: Service, job_id: str, step: int) -> psutil.Process:
    """The worker of a job, stopped after this step of the job: else the job might end before a test has done more."""
    await service.until(job_id, lambda job: job.progress.step > step and job.checkpointed)
    supervisors = service.manager._dispatcher._supervisors.values()
    [handle] = [one._handle for one in supervisors if job_id in one.attempts and one._handle is not None]
    process = psutil.Process(int((await handle.poll(0, 0)).details["pid"]))
    process.suspend()
    return process


async def test_workers_that_are_stopped_or_killed_cost_nothing_but_the_steps_since_the_checkpoint(
    service: Service, pool: RayPool
) -> None:
    """First SIGSTOP: the processes live, keep their resources and are silent. One continues, when its job belongs to
    another worker; the other one never does. They are replaced and end and are not heard again. Then SIGKILL.
    """
    usual_seconds = service.config.heartbeat_seconds
    manager = await service.start(pool, max_workers=2, max_jobs_per_worker=1, heartbeat_seconds=10.0)
    jobs = [await manager.create(spec(num_steps=400, prompt=f"p-{number}")) for number in range(2)]
    stopped = await asyncio.gather(*(suspended(service, job.id, 40) for job in jobs))
    service.configure(heartbeat_seconds=usual_seconds)
    stopped_at = time.time()
    for job in jobs:
        await service.until(job.id, lambda job: job.attempt == 2)
    recovery.note(
        f"worker hangs, heartbeat of {service.config.heartbeat_seconds:g} s: running again", time.time() - stopped_at
    )
    with contextlib.suppress(psutil.NoSuchProcess):
        stopped[0].resume()

    moved = [await manager.get(job.id) for job in jobs]
    killed = await asyncio.gather(*(suspended(service, job.id, job.progress.step) for job in moved))
    killed_at = time.time()
    for process in killed:
        process.kill()
    for job in jobs:
        again = await service.until(job.id, lambda job: job.attempt == 3 and job.state is not JobState.QUEUED)
        recovery.note("every worker killed: running again", time.time() - killed_at)
        done = await service.state(job.id, JobState.SUCCEEDED)
        assert done.attempt == again.attempt == 3
        assert service.versions(done.spec.prompt) == [1]
        events = [event.payload async for event in manager.watch(job.id)]
        notes = [payload.text for payload in events if isinstance(payload, Note)]
        assert sum("lost its worker" in note for note in notes) == 2
        resumed = [int(note.rpartition(" ")[2]) for note in notes if note.startswith("resumes from step")]
        assert len(resumed) == 2
        assert 0 < resumed[0] <= resumed[1]
        states = [payload.state for payload in events if isinstance(payload, Job)]
        assert states == [JobState.QUEUED, JobState.RUNNING] * 3 + [JobState.SUCCEEDED]
        record = service.prompt_store.refresh().prompt(done.spec.prompt).version(1)
        manifest = decode_blob(service.prompt_store.fetch(record.digest)).manifest
        assert manifest.job == job.name
        assert manifest.golden
    await until(lambda: not any(psutil.pid_exists(process.pid) for process in [*stopped, *killed]))


async def test_a_cohort_out_of_memory_is_split_and_the_job_that_fits_nowhere_fails_with_advice(
    service: Service, ray_cluster: SharedCluster, tmp_path: Path
) -> None:
    """Worker processes have a real memory limit: one job needs more than the first worker has left, another more than
    any worker has.
    """
    wide = {"max_position_embeddings": 16_384, "intermediate_size": 8192}  # a position of a pass keeps 130 KB
    model = save_tiny_llama(tmp_path / "long", **wide)
    service.base = effective_spec(base_model.inspect(model, id="tiny"))
    settings = WorkerSettings(dtype="float32", device="cpu", cpus_per_worker=1, checkpoint_seconds=0.2)
    pool = RayPool(ray_cluster, {"tiny": str(model)}, settings)
    manager = await service.start(pool)
    small = await manager.create(spec(num_steps=400))
    await service.until(small.id, lambda job: job.progress.step > 10)
    first = await pid_of(pool)
    used = psutil.Process(first).memory_info().vms
    resource.prlimit(first, resource.RLIMIT_AS, (used + (160 << 20),) * 2)
    bounding = asyncio.create_task(bound_memory(pool, {first}, used + (1 << 30)))
    large = await manager.create(spec("x" * 2_000, prompt="large", num_steps=2))
    huge = await manager.create(spec("x" * 14_000, prompt="huge", num_steps=50))
    alone = await service.state(large.id, JobState.SUCCEEDED)
    assert alone.attempt >= 2, "once beside the other, once in its own process; one without memory may also die of it"
    states = [event for event in service.store.events(large.id, 0) if isinstance(event.payload, Job)]
    again_at = max(event.time for event in states if event.payload.state is JobState.RUNNING)
    recovery.note(
        "out of memory beside others: from submission to its own process",
        (again_at - large.create_time).total_seconds(),
    )
    failed = await service.state(huge.id, JobState.FAILED)
    assert failed.error is not None
    assert failed.error.code == "OUT_OF_MEMORY"
    assert "fewer virtual tokens" in failed.error.message
    assert failed.attempt >= 2, "once beside the other, once alone"
    await service.state(small.id, JobState.SUCCEEDED)
    assert [service.versions(prompt) for prompt in ("tone", "large", "huge")] == [[1], [1], []]
    bounding.cancel()


async def bound_memory(pool: RayPool, known: set[int], most_bytes: int) -> None:
    """Limits the address space of workers that start from now on."""
    while True:
        for pid in set(await pids_of(pool)) - known:
            with contextlib.suppress(ProcessLookupError):
                resource.prlimit(pid, resource.RLIMIT_AS, (most_bytes, most_bytes))
            known.add(pid)
        await asyncio.sleep(0.02)


async def test_a_crashed_and_a_drained_service_go_on_where_they_were(service: Service, pool: RayPool) -> None:
    manager = await service.start(pool)
    jobs = [await manager.create(spec(num_steps=400, prompt=f"p-{number}")) for number in range(3)]
    for job in jobs:
        await service.until(job.id, lambda job: job.progress.step > 20)
    await service.crash()

    again = RayPool(pool._cluster, pool._base_models, pool._settings)
    manager = await service.start(again)
    for job in jobs:
        await service.until(job.id, lambda job: job.attempt == 2 and job.progress.step > 40)
    failures = {job.id: (await manager.get(job.id)).failures for job in jobs}
    pid = await pid_of(again)
    await service.drain(300)
    await until(lambda: not psutil.pid_exists(pid))

    manager = await service.start(RayPool(pool._cluster, pool._base_models, pool._settings))
    for job in jobs:
        done = await service.state(job.id, JobState.SUCCEEDED)
        assert (done.attempt, done.failures) == (3, failures[job.id])
        assert service.versions(done.spec.prompt) == [1]
        events = [event.payload async for event in manager.watch(job.id)]
        resumed = [number for number, event in enumerate(events) if isinstance(event, Note) and "resumes" in event.text]
        assert len(resumed) == 2
        steps = [event.step for event in events[resumed[0] :] if hasattr(event, "train_loss")]
        assert steps == sorted(steps), "no step was done twice because of the drain"
