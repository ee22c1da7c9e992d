"""Jobs, their progress and their events, as messages. Only this way: nobody sends us a job."""

from __future__ import annotations

from prompttuning.v1 import common_pb2, tuning_pb2

from shared.security.page_tokens import Json
from shared.violations import Violations
from shared.wire.enums import INIT_METHODS, ORDERS, STATES
from shared.wire.fields import write_timestamp
from trainer_service.convert.spec import effective_to_wire, spec_to_wire
from trainer_service.jobs.comparisons import SearchCandidate
from trainer_service.jobs.model import (
    CheckpointStored,
    Evaluation,
    Job,
    JobEvent,
    JobFilter,
    JobOrder,
    JobProgress,
    JobResult,
    Note,
)


def job_to_wire(job: Job) -> tuning_pb2.TuningJob:
    error = None if job.error is None else tuning_pb2.TuningError(**job.error.model_dump())
    return tuning_pb2.TuningJob(
        name=job.name,
        spec=spec_to_wire(job.spec),
        effective_spec=effective_to_wire(job.spec, job.effective),
        state=STATES.to_wire(job.state),
        queue_position=job.queue_position,
        attempt=job.attempt,
        progress=progress_to_wire(job.progress),
        dataset_statistics=_statistics_to_wire(job),
        error=error,
        result=None if job.result is None else result_to_wire(job.result),
        create_time=write_timestamp(job.create_time),
        start_time=write_timestamp(job.start_time),
        end_time=write_timestamp(job.end_time),
        last_event=job.last_event,
        estimated_start_time=write_timestamp(job.estimated_start_time),
        best_prompt_kept=job.keeps_best_prompt,
    )


def _statistics_to_wire(job: Job) -> tuning_pb2.DatasetStatistics | None:
    """What was counted when the job was created, and what its worker counted."""
    found, repetition = job.dataset_statistics, job.effective.repetition
    if found is None and repetition is None:
        return None
    message = tuning_pb2.DatasetStatistics(
        num_train=job.effective.num_train, num_validation=job.effective.num_validation
    )
    if found is not None:
        message = tuning_pb2.DatasetStatistics(**found.model_dump())
    if repetition is not None:
        message.num_distinct_inputs = repetition.num_distinct_inputs
        message.num_duplicates = repetition.num_duplicates
        message.num_near_duplicates = repetition.num_near_duplicates
        message.num_contradictions = repetition.num_contradictions
    return message


def progress_to_wire(progress: JobProgress) -> tuning_pb2.TuningProgress:
    values = progress.model_dump(exclude={"estimated_end_time"})
    return tuning_pb2.TuningProgress(**values, estimated_end_time=write_timestamp(progress.estimated_end_time))


def result_to_wire(result: JobResult) -> tuning_pb2.TuningResult:
    messages = {"nearest_tokens", "comparisons", "candidates"}
    return tuning_pb2.TuningResult(
        **result.model_dump(exclude=messages),
        nearest_tokens=[
            tuning_pb2.NearestToken(text=token.text, cosine=token.cosine) for token in result.nearest_tokens
        ],
        comparisons=[common_pb2.Comparison(**one.model_dump()) for one in result.comparisons],
        candidates=[_candidate_to_wire(one) for one in result.candidates],
    )


def _candidate_to_wire(candidate: SearchCandidate) -> tuning_pb2.SearchCandidate:
    method = INIT_METHODS.to_wire(candidate.init_method)
    return tuning_pb2.SearchCandidate(**candidate.model_dump(exclude={"init_method"}), init_method=method)


def event_to_wire(event: JobEvent) -> tuning_pb2.TuningEvent:
    message = tuning_pb2.TuningEvent(number=event.number, time=write_timestamp(event.time))
    match event.payload:
        case Job():
            message.state_changed.CopyFrom(job_to_wire(event.payload))
        case JobProgress():
            message.progress.CopyFrom(progress_to_wire(event.payload))
        case Evaluation(step=step, metrics=metrics, is_best=is_best):
            message.evaluation.CopyFrom(tuning_pb2.Evaluation(step=step, metrics=metrics, is_best=is_best))
        case CheckpointStored(step=step):
            message.checkpoint.CopyFrom(tuning_pb2.Checkpoint(step=step))
        case Note(text=text):
            message.note = text
    return message


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
