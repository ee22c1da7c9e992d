"""Estimated times of jobs that don't exist yet, from stored jobs that succeeded."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import insert

from shared.values.results import TuningProgress
from tests.trainer_service.builders import effective_spec, record
from trainer_service.database.schema import jobs
from trainer_service.dispatch.job_estimate import training_seconds
from trainer_service.jobs.model import EffectiveSpec
from trainer_service.jobs.record import to_row
from trainer_service.jobs.states import JobState
from trainer_service.jobs.store.job_store import JobStore
from trainer_service.training.spec import FilledDistillation

BATCH_SIZE = 4


def test_a_job_trains_as_fast_as_recent_jobs(store: JobStore) -> None:
    assert training_seconds(store.database, _spec(num_steps=10)) is None
    for speed in (1.0, 2.0, 50.0):
        _add_ended(store, _spec(num_steps=5), speed, 100.0)
    _add_ended(store, _spec(num_steps=5), 9.0, 100.0, JobState.FAILED)
    assert training_seconds(store.database, _spec(num_steps=10)) == pytest.approx(10 * BATCH_SIZE / 2.0)


def test_a_distillation_asks_and_answers_before_it_trains(store: JobStore) -> None:
    _add_ended(store, _spec(num_steps=5), 50.0, 1.0)
    asked = _spec(num_steps=10, num_questions=40)
    assert training_seconds(store.database, asked) is None, "other jobs are no measure of self-studies"
    for questions, seconds_each in ((10, 3.0), (20, 5.0), (30, 4.0)):
        trained = 5 * BATCH_SIZE / 2.0
        _add_ended(store, _spec(num_steps=5, num_questions=questions), 2.0, trained + questions * seconds_each)
    assert training_seconds(store.database, asked) == pytest.approx(10 * BATCH_SIZE / 2.0 + 40 * 4.0)


def _spec(num_steps: int, num_questions: int = 0) -> EffectiveSpec:
    found = effective_spec(num_steps=num_steps, batch_size=BATCH_SIZE)
    if not num_questions:
        return found
    asked = FilledDistillation(num_questions=num_questions, max_answer_tokens=8, num_held_out=2)
    return found.model_copy(update={"training": found.training.model_copy(update={"distillation": asked})})


def _add_ended(
    store: JobStore, effective: EffectiveSpec, speed: float, seconds: float, state: JobState = JobState.SUCCEEDED
) -> None:
    """A job that trained all its steps with `speed` examples per second and took `seconds`."""
    steps = effective.training.hyperparameters.num_steps
    ended: dict[str, Any] = {"effective": effective, "state": state, "runtime_seconds": seconds}
    ended["progress"] = TuningProgress(step=steps, num_steps=steps, examples_per_second=speed)
    made = record()
    with store.database.write() as connection:
        connection.execute(insert(jobs).values(**to_row(replace(made, job=made.job.model_copy(update=ended)))))
