"""A job's specs as its caller sees them: what was asked for, and what is trained."""

from __future__ import annotations

from dataclasses import replace

from shared.caller import current_caller
from shared.security.methods import prompt_of
from shared.values.hyperparameters import Hyperparameters
from shared.values.spec import TuningSpec
from trainer_service.jobs.model import Job

_JOB_PREFIX = "tuningJobs/"


def asked_spec(job: Job) -> TuningSpec:
    """What was asked for; inline examples and files appear as the dataset that they were stored as."""
    return replace(job.spec, hyperparameters=_shown(job.spec.hyperparameters))


def effective_spec(job: Job) -> TuningSpec:
    """What is trained: the same spec with nothing left open."""
    effective, training = job.effective, job.effective.training
    return replace(
        job.spec,
        base_model=effective.base_model.id,
        validation_fraction=None if job.spec.validation_dataset else effective.validation_fraction,
        template=training.template,
        task=training.task,
        labels=training.labels,
        hyperparameters=_shown(training.hyperparameters.as_chosen),
        max_runtime_seconds=effective.max_runtime_seconds,
        too_long=training.too_long,
    )


def shown_source(source: str) -> str:
    """What a prompt was started from; empty if that is another prompt, which the caller may not name. A job's id names
    no prompt.
    """
    return source if source.startswith(_JOB_PREFIX) or current_caller().may_use(prompt_of(source)) else ""


def _shown(hyperparameters: Hyperparameters) -> Hyperparameters:
    init = hyperparameters.init
    return (
        hyperparameters
        if init is None
        else replace(hyperparameters, init=replace(init, source=shown_source(init.source)))
    )
