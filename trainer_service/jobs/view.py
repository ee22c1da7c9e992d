"""Jobs and their events as their caller sees them."""

from __future__ import annotations

from dataclasses import asdict, fields, replace

from shared.caller import current_caller
from shared.security.methods import prompt_of
from shared.values.events import ShownPayload
from shared.values.hyperparameters import Hyperparameters
from shared.values.job import TuningJob
from shared.values.results import DatasetStatistics, EncodingStatistics
from shared.values.spec import Distillation, TuningSpec
from trainer_service.jobs.model import JOB_PREFIX, EventPayload, Job

_SAME = frozenset(Job.model_fields) & {field.name for field in fields(TuningJob)}
"""Fields of TuningJob that are those of Job, but for the two that `shown_job` replaces."""


def shown_job(job: Job) -> TuningJob:
    """The job for the current caller."""
    shown = {name: getattr(job, name) for name in _SAME}
    shown |= {"spec": asked_spec(job), "dataset_statistics": _statistics_of(job)}
    return TuningJob(**shown, name=job.name, effective_spec=effective_spec(job), best_prompt_kept=job.keeps_best_prompt)


def asked_spec(job: Job) -> TuningSpec:
    """What was asked for; inline examples and files appear as the dataset that they were stored as."""
    return replace(job.spec, hyperparameters=_shown(job.spec.hyperparameters))


def effective_spec(job: Job) -> TuningSpec:
    """The spec as it is trained, with all defaults filled in."""
    effective, training = job.effective, job.effective.training
    held_out, chosen = job.spec.validation_dataset, training.distillation
    return replace(
        job.spec,
        base_model=effective.base_model.id,
        validation_fraction=None if held_out else effective.validation_fraction or job.spec.validation_fraction,
        template=training.template,
        task=training.task,
        labels=training.labels,
        hyperparameters=_shown(training.hyperparameters.as_chosen),
        max_runtime_seconds=effective.max_runtime_seconds,
        too_long=training.too_long,
        distillation=None if chosen is None else Distillation(chosen.num_questions, chosen.max_answer_tokens),
    )


def shown_source(source: str) -> str:
    """What a prompt was started from; empty if that is another prompt, which the caller may not name. A job's id names
    no prompt.
    """
    return source if source.startswith(JOB_PREFIX) or current_caller().may_use(prompt_of(source)) else ""


def _shown(hyperparameters: Hyperparameters) -> Hyperparameters:
    init = hyperparameters.init
    if init is None:
        return hyperparameters
    return replace(hyperparameters, init=replace(init, source=shown_source(init.source)))


def _statistics_of(job: Job) -> DatasetStatistics | None:
    """What was counted when the job was created, and what its worker counted."""
    found, repetition = job.dataset_statistics, job.effective.repetition
    if found is None and repetition is None and job.effective.training.distillation is None:
        return None
    counted = asdict(found or EncodingStatistics(job.effective.num_train, job.effective.num_validation))
    if repetition is None:
        return DatasetStatistics(**counted)
    return DatasetStatistics(
        **counted,
        num_distinct_inputs=repetition.num_distinct_inputs,
        num_duplicates=repetition.num_duplicates,
        num_near_duplicates=repetition.num_near_duplicates,
        num_contradictions=repetition.num_contradictions,
        label_notes=repetition.label_notes,
    )


def shown_payload(payload: EventPayload) -> ShownPayload:
    """The payload of an event for the current caller."""
    return shown_job(payload) if isinstance(payload, Job) else payload
