"""Jobs, their progress and their events, as messages. There is no way back: no call sends a job."""

from __future__ import annotations

from dataclasses import asdict

from prompttuning.v1 import tuning_pb2

from shared.security.page_tokens import Json
from shared.values.results import DatasetStatistics, EncodingStatistics, TuningProgress
from shared.violations import Violations
from shared.wire.enums import ORDERS, STATES
from shared.wire.fields import write_timestamp
from shared.wire.mirror import fill, write
from trainer_service.convert.spec import effective_to_wire, spec_to_wire
from trainer_service.jobs.model import CheckpointStored, Evaluation, Job, JobEvent, JobFilter, JobOrder, Note


def job_to_wire(job: Job) -> tuning_pb2.TuningJob:
    """The message of a job."""
    return fill(
        tuning_pb2.TuningJob(spec=spec_to_wire(job.spec), effective_spec=effective_to_wire(job.spec, job.effective)),
        name=job.name,
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


def _statistics_of(job: Job) -> DatasetStatistics | None:
    """What was counted when the job was created, and what its worker counted."""
    found, repetition = job.dataset_statistics, job.effective.repetition
    if found is None and repetition is None:
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
    )


def event_to_wire(event: JobEvent) -> tuning_pb2.TuningEvent:
    """The message of a job's event."""
    message = tuning_pb2.TuningEvent(number=event.number, time=write_timestamp(event.time))
    match event.payload:
        case Job():
            message.state_changed.CopyFrom(job_to_wire(event.payload))
        case TuningProgress():
            message.progress.SetInParent()
            write(event.payload, message.progress)
        case Evaluation():
            message.evaluation.CopyFrom(evaluation_to_wire(event.payload))
        case CheckpointStored(step=step):
            message.checkpoint.CopyFrom(tuning_pb2.Checkpoint(step=step))
        case Note(text=text):
            message.note = text
    return message


def evaluation_to_wire(evaluation: Evaluation) -> tuning_pb2.Evaluation:
    """The message of an evaluation."""
    return tuning_pb2.Evaluation(step=evaluation.step, metrics=evaluation.metrics, is_best=evaluation.is_best)


def filter_from_wire(message: tuning_pb2.ListTuningJobsRequest) -> JobFilter:
    """Raises InvalidInput for states or an order that this build does not know."""
    violations = Violations()
    states = {STATES.checked(number, f"states[{index}]", violations) for index, number in enumerate(message.states)}
    order = ORDERS.checked(message.order, "order", violations) or JobOrder.NEWEST_FIRST
    violations.raise_if_any()
    return JobFilter(
        states=frozenset(state for state in states if state is not None),
        prompt=message.prompt,
        annotations=dict(message.annotations),
        order=order,
    )


def filter_to_json(filter: JobFilter) -> dict[str, Json]:
    """What a page token is bound to: the request's own part of the filter."""
    return {
        "states": [*sorted(filter.states)],
        "prompt": filter.prompt,
        "annotations": dict(filter.annotations),
        "order": filter.order,
    }
