"""Real file systems that are full or can't be written: a small tmpfs under the service's files, mounted by the test."""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from shared.errors import Unavailable
from shared.store.local import LocalBackend
from shared.store.store import PromptStore
from tests import recovery
from tests.trainer_service.builders import spec
from tests.trainer_service.job_service import Service
from tests.waiting import until
from trainer_service.jobs.model import Note
from trainer_service.jobs.states import JobState


class Tmpfs:
    """A file system of two megabytes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._filler = path / "filler"

    def mount(self) -> bool:
        command = ["mount", "-t", "tmpfs", "-o", "size=2m,mode=0700", "tmpfs", str(self.path)]
        return subprocess.run(command, check=False, capture_output=True).returncode == 0

    def remount(self, how: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{how}", str(self.path)], check=True)

    def unmount(self) -> None:
        subprocess.run(["umount", "--lazy", str(self.path)], check=True)

    def fill(self) -> None:
        """Fills the file system to its last byte."""
        with self._filler.open("ab", buffering=0) as file:
            for size in (1 << 16, 1 << 12, 1):
                try:
                    while True:
                        file.write(bytes(size))
                except OSError:
                    continue

    def empty(self) -> None:
        self._filler.unlink()


@pytest.fixture
def tmpfs(tmp_path: Path) -> Iterator[Tmpfs]:
    mounted = Tmpfs(tmp_path / "small")
    mounted.path.mkdir()
    if os.getuid() != 0 or not mounted.mount():
        pytest.skip("MOUNTING IS NOT PERMITTED HERE: what happens on a full or read-only file system is not tested")
    yield mounted
    mounted.unmount()


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    made = Service(tmp_path)
    yield made
    await made.drain()


def writes_are_refused(caplog: pytest.LogCaptureFixture) -> bool:
    """Whether the service has logged that it repeats a write."""
    return any("trying again in about" in record.getMessage() for record in caplog.records)


async def test_a_store_that_can_not_be_written_at_publish_time(service: Service, tmpfs: Tmpfs) -> None:
    store = PromptStore(LocalBackend(tmpfs.path / "prompts"))
    manager = await service.start(prompt_store=store)
    tmpfs.remount("ro")
    job = await manager.create(spec())
    await service.until(job.id, lambda job: job.last_event > 3)

    async def notes() -> list[str]:
        events = await asyncio.to_thread(service.store.events, job.id, 0)
        return [event.payload.text for event in events if isinstance(event.payload, Note)]

    while not any("will be published later" in note for note in await notes()):
        await asyncio.sleep(0.01)
    assert (await manager.get(job.id)).state is JobState.RUNNING
    num_steps = sum(len(trainer.log) for trainer in service.trainers)
    await service.crash()
    await service.start(prompt_store=PromptStore(LocalBackend(tmpfs.path / "prompts")))
    tmpfs.remount("rw")
    writable_at = time.time()
    done = await service.state(job.id, JobState.SUCCEEDED)
    recovery.note("prompt store can be written again: the version is published", time.time() - writable_at)
    assert done.result is not None
    assert done.result.version == "prompts/tone/versions/1"
    assert service.versions("tone") == [1]
    assert sum(len(trainer.log) for trainer in service.trainers) == num_steps, "nothing was trained again"


async def test_a_full_disk_under_everything(tmpfs: Tmpfs, caplog: pytest.LogCaptureFixture) -> None:
    """Jobs, checkpoints and prompts share one full disk: jobs that can't be stored are refused, others survive."""
    service = Service(tmpfs.path)
    manager = await service.start()
    running = await manager.create(spec("forever", num_steps=60))
    await service.until(running.id, lambda job: job.progress.step > 5)
    caplog.clear()
    tmpfs.fill()
    accepted = []
    while True:
        try:
            accepted.append(await manager.create(spec(prompt="late")))
        except Unavailable:
            break
    service.finish.set()
    await until(lambda: any(step == 60 for trainer in service.trainers for _, _, step in trainer.log))
    await until(lambda: writes_are_refused(caplog))
    assert (await manager.get(running.id)).state is JobState.RUNNING
    tmpfs.empty()
    emptied_at = time.time()
    done = await service.state(running.id, JobState.SUCCEEDED)
    recovery.note("disk full, then room again: the job is published", time.time() - emptied_at)
    assert done.attempt == 1
    assert service.versions("tone") == [1]
    for job in accepted:
        await service.state(job.id, JobState.SUCCEEDED)
    assert len(service.versions("late")) == len(accepted)
    await service.drain()


async def test_a_disk_that_is_full_through_a_crash(tmpfs: Tmpfs, caplog: pytest.LogCaptureFixture) -> None:
    service = Service(tmpfs.path)
    manager = await service.start()
    job = await manager.create(spec("forever", num_steps=100_000))
    await service.until(job.id, lambda job: job.progress.step > 5)
    caplog.clear()
    tmpfs.fill()
    await until(lambda: writes_are_refused(caplog))
    await service.crash()
    tmpfs.empty()
    manager = await service.start()
    await service.until(job.id, lambda job: job.attempt == 2 and job.progress.step > 10)
    await manager.cancel(job.id)
    await service.state(job.id, JobState.CANCELLED)
    await service.drain()
