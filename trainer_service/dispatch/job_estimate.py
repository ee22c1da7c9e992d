"""Estimates how long a job will take on a worker, from recent jobs of its base model."""

from __future__ import annotations

import statistics
from itertools import islice
from typing import Any

from sqlalchemy import Select, select

from shared.values.results import TuningProgress
from trainer_service.database.database import Database
from trainer_service.database.schema import jobs
from trainer_service.jobs.model import EffectiveSpec
from trainer_service.jobs.states import JobState
from trainer_service.jobs.stored_json import from_json

_RECENT_JOBS, _SEARCHED_JOBS = 20, 200
"""A distillation is compared with the distillations among more of the recent jobs."""


def training_seconds(database: Database, effective: EffectiveSpec) -> float | None:
    """Seconds on a worker if it trains all its steps as fast as recent jobs did; None without such jobs.

    Evaluations are included, because a job's speed is its examples by the time between its reports. The error is large
    if the job's examples are much longer or shorter than those of the others. Raises Unavailable.

    A distillation is compared with distillations: to its steps comes the time for each of its questions that they
    spent beside their steps, in the self-study and the judgement.
    """
    chosen = effective.training.hyperparameters
    num_examples = chosen.num_steps * chosen.batch_size
    if effective.training.distillation is not None:
        return _distillation_seconds(database, effective, effective.training.distillation.num_questions, num_examples)
    rows = database.rows(_recent(effective, jobs.c.progress).limit(_RECENT_JOBS))
    speeds = [speed for (done,) in rows if (speed := from_json(TuningProgress, done).examples_per_second) > 0]
    return num_examples / statistics.median(speeds) if speeds else None


def _distillation_seconds(
    database: Database, effective: EffectiveSpec, num_questions: int, num_examples: int
) -> float | None:
    query = _recent(effective, jobs.c.effective, jobs.c.progress, jobs.c.runtime_seconds).limit(_SEARCHED_JOBS)
    rows = database.rows(query)
    found = ((from_json(EffectiveSpec, spec), from_json(TuningProgress, done), spent) for spec, done, spent in rows)
    speeds, others = list[float](), list[float]()
    for spec, progress, spent in islice((one for one in found if one[0].training.distillation), _RECENT_JOBS):
        if progress.examples_per_second > 0:
            assert spec.training.distillation is not None
            trained = progress.step * spec.training.hyperparameters.batch_size / progress.examples_per_second
            speeds.append(progress.examples_per_second)
            others.append(max(0.0, spent - trained) / spec.training.distillation.num_questions)
    if not speeds:
        return None
    return num_examples / statistics.median(speeds) + num_questions * statistics.median(others)


def _recent(effective: EffectiveSpec, *columns: Any) -> Select[*tuple[Any, ...]]:
    """These columns of the jobs of its base model that succeeded, newest first."""
    wanted = jobs.c.state == JobState.SUCCEEDED.value, jobs.c.base_model == effective.base_model.id
    return select(*columns).where(*wanted).order_by(jobs.c.id.desc())
