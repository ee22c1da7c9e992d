"""Deadlines of jobs that wait, run, or finish in time."""

from __future__ import annotations

import time
from datetime import timedelta

import pytest

from tests.trainer_service.builders import spec
from tests.trainer_service.job_service import Service
from trainer_service.jobs.model import utc_now
from trainer_service.jobs.states import JobState


async def test_a_job_fails_at_its_deadline_wherever_it_is_and_others_go_on(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = await service.start(max_jobs_per_worker=1)
    soon = utc_now() + timedelta(minutes=10)
    running = await manager.create(spec("forever", num_steps=1000, deadline=soon))
    waiting = await manager.create(spec(deadline=soon))
    patient = await manager.create(spec(deadline=utc_now() + timedelta(days=1)))
    await service.until(running.id, lambda job: job.progress.step > 0 and job.checkpointed)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 1200)
    for job in (running, waiting):
        failed = await service.state(job.id, JobState.FAILED)
        assert failed.error is not None
        assert (failed.error.code, failed.error.field) == ("DEADLINE_EXCEEDED", "spec.deadline")
        assert failed.end_time is not None
        assert failed.end_time >= soon
    assert (await manager.get(running.id)).keeps_best_prompt
    assert not (await manager.get(waiting.id)).keeps_best_prompt
    await service.state(patient.id, JobState.SUCCEEDED)
