"""A span for each attempt of each job on this worker, in the trace of the call that created the job."""

from __future__ import annotations

from collections.abc import Iterable

from opentelemetry.trace import Span, SpanKind, StatusCode

from shared.trace_context import parent_of
from shared.tracing import Tracing
from trainer_service.training.events import Failed, Finished, Stopped, TrainingEvent, TrainingTask


class JobSpans:
    """The open spans of a worker's jobs, used only by the step thread.

    If the worker dies, its open spans are lost; the next attempt has a new one.
    """

    def __init__(self, tracing: Tracing) -> None:
        self._tracing = tracing
        self._open: dict[str, Span] = {}

    def begin(self, task: TrainingTask) -> None:
        """Open the span of an attempt."""
        attributes: dict[str, str | int] = {"softprompt.job": task.job_id, "softprompt.attempt": task.attempt}
        self._open[task.job_id] = self._tracing.begin(
            "train", parent_of(task.traceparent), SpanKind.INTERNAL, attributes
        )

    def record(self, events: Iterable[TrainingEvent]) -> None:
        """End the spans of jobs that ended."""
        for event in events:
            if (
                isinstance(event, Finished | Failed | Stopped)
                and (span := self._open.pop(event.job_id, None)) is not None
            ):
                span.set_attribute("softprompt.outcome", type(event).__name__.lower())
                if isinstance(event, Failed):
                    span.set_status(StatusCode.ERROR, event.code)
                span.end()
