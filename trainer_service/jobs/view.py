"""Jobs, their events and reports as their caller sees them."""

from __future__ import annotations

from dataclasses import asdict, replace

from shared.caller import current_caller
from shared.security.methods import prompt_of
from shared.values import report as values
from shared.values.events import ShownPayload
from shared.values.hyperparameters import Hyperparameters
from shared.values.job import TuningJob
from shared.values.results import DatasetStatistics, EncodingStatistics
from shared.values.spec import Distillation, TuningSpec
from trainer_service.jobs.model import EventPayload, Job
from trainer_service.jobs.reports import JobReport
from trainer_service.training.spec import FilledDistillation

_JOB_PREFIX = "tuningJobs/"


def shown_job(job: Job) -> TuningJob:
    """The job for the current caller."""
    return TuningJob(
        name=job.name,
        spec=asked_spec(job),
        effective_spec=effective_spec(job),
        state=job.state,
        queue_position=job.queue_position,
        attempt=job.attempt,
        progress=job.progress,
        dataset_statistics=_statistics_of(job),
        error=job.error,
        result=job.result,
        create_time=job.create_time,
        start_time=job.start_time,
        end_time=job.end_time,
        last_event=job.last_event,
        estimated_start_time=job.estimated_start_time,
        best_prompt_kept=job.keeps_best_prompt,
    )


def asked_spec(job: Job) -> TuningSpec:
    """What was asked for; inline examples and files appear as the dataset that they were stored as."""
    return replace(job.spec, hyperparameters=_shown(job.spec.hyperparameters))


def effective_spec(job: Job) -> TuningSpec:
    """What is trained: the same spec with nothing left open."""
    effective, training = job.effective, job.effective.training
    return replace(
        job.spec,
        base_model=effective.base_model.id,
        validation_fraction=None
        if job.spec.validation_dataset
        else effective.validation_fraction or job.spec.validation_fraction,
        template=training.template,
        task=training.task,
        labels=training.labels,
        hyperparameters=_shown(training.hyperparameters.as_chosen),
        max_runtime_seconds=effective.max_runtime_seconds,
        too_long=training.too_long,
        distillation=_distillation(training.distillation),
    )


def _distillation(chosen: FilledDistillation | None) -> Distillation | None:
    return None if chosen is None else Distillation(chosen.num_questions, chosen.max_answer_tokens)


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


def _statistics_of(job: Job) -> DatasetStatistics | None:
    """What was counted when the job was created, and what its worker counted."""
    found, repetition = job.dataset_statistics, job.effective.repetition
    if found is None and repetition is None and job.effective.training.distillation is None:
        return None
    counted = found or EncodingStatistics(job.effective.num_train, job.effective.num_validation)
    if repetition is None:
        return DatasetStatistics(**asdict(counted))
    return DatasetStatistics(
        **asdict(counted),
        num_distinct_inputs=repetition.num_distinct_inputs,
        num_duplicates=repetition.num_duplicates,
        num_near_duplicates=repetition.num_near_duplicates,
        num_contradictions=repetition.num_contradictions,
        label_notes=repetition.label_notes,
    )


def shown_payload(payload: EventPayload) -> ShownPayload:
    """The payload of an event for the current caller."""
    return shown_job(payload) if isinstance(payload, Job) else payload


def shown_report(report: JobReport) -> values.JobReport:
    """The report for the current caller."""
    effective = report.job.effective
    parent = shown_source(effective.source_version)
    lineage = values.JobLineage(
        dataset=report.job.spec.dataset,
        validation_dataset=report.job.spec.validation_dataset,
        init=effective_spec(report.job).hyperparameters.init,
        parent_version=parent,
        parent_digest=effective.source_digest if parent else "",
        base_model=effective.base_model,
        software_version=report.software_version,
    )
    return values.JobReport(
        job=shown_job(report.job),
        training=report.training,
        evaluations=report.evaluations,
        answers=report.answers.answers,
        num_answers_left_out=report.answers.num_left_out,
        confusion=report.answers.confusion,
        lineage=lineage,
        cost=report.cost,
        missing=report.missing,
        other_held_out_lines=report.answers.other_lines,
    )
