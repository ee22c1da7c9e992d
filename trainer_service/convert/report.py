"""Reports of jobs as messages. There is no way back: no call sends a report."""

from __future__ import annotations

from prompttuning.v1 import tuning_pb2

from shared.wire.mirror import fill
from trainer_service.convert.common import base_model_to_wire, source_to_wire
from trainer_service.convert.jobs import evaluation_to_wire, job_to_wire
from trainer_service.convert.spec import hyperparameters_to_wire
from trainer_service.jobs.reports import JobReport


def report_to_wire(report: JobReport) -> tuning_pb2.JobReport:
    """The message of a job's report."""
    message = tuning_pb2.JobReport(
        job=job_to_wire(report.job),
        evaluations=map(evaluation_to_wire, report.evaluations),
        lineage=_lineage_to_wire(report),
    )
    return fill(
        message,
        training=report.training,
        answers=report.answers.answers,
        num_answers_left_out=report.answers.num_left_out,
        confusion=report.answers.confusion,
        cost=report.cost,
        missing=report.missing,
    )


def _lineage_to_wire(report: JobReport) -> tuning_pb2.JobLineage:
    spec, effective = report.job.spec, report.job.effective
    parent = source_to_wire(effective.source_version)
    return tuning_pb2.JobLineage(
        dataset=spec.dataset,
        validation_dataset=spec.validation_dataset,
        init=hyperparameters_to_wire(effective.training.hyperparameters).init,
        parent_version=parent,
        parent_digest=effective.source_digest if parent else "",
        base_model=base_model_to_wire(effective.base_model),
        software_version=report.software_version,
    )
