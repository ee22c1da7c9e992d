"""Estimates how long a job will train, from the speed of recent jobs of its base model."""

from __future__ import annotations

import statistics

from sqlalchemy import select

from shared.values.results import TuningProgress
from trainer_service.database.database import Database
from trainer_service.database.schema import jobs
from trainer_service.jobs.model import EffectiveSpec
from trainer_service.jobs.states import JobState
from trainer_service.jobs.stored_json import from_json

_RECENT_JOBS = 20


def training_seconds(database: Database, effective: EffectiveSpec) -> float | None:
    """Seconds on a worker if it trains all its steps as fast as recent jobs did; None without such jobs.

    Evaluations are included, because a job's speed is its examples by the time between its reports. The error is large
    if the job's examples are much longer or shorter than those of the others. The self-study of a distillation is not
    included. Raises Unavailable.
    """
    query = select(jobs.c.progress).where(
        jobs.c.state == JobState.SUCCEEDED.value, jobs.c.base_model == effective.base_model.id
    )
    with database.read() as connection:
        rows = connection.scalars(query.order_by(jobs.c.id.desc()).limit(_RECENT_JOBS)).all()
    speeds = [speed for row in rows if (speed := from_json(TuningProgress, row).examples_per_second) > 0]
    if not speeds:
        return None
    chosen = effective.training.hyperparameters
    return chosen.num_steps * chosen.batch_size / statistics.median(speeds)
