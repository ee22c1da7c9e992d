"""The events of a job as messages."""

from __future__ import annotations

from datetime import datetime

from prompttuning.v1 import tuning_pb2

from shared.values.events import Checkpoint, Evaluation, Note, ShownPayload
from shared.values.job import TuningJob
from shared.values.results import TuningProgress
from shared.wire.mirror import fill

_FIELDS = {
    TuningJob: "state_changed",
    TuningProgress: "progress",
    Evaluation: "evaluation",
    Checkpoint: "checkpoint",
}


def write_event(number: int, time: datetime, payload: ShownPayload) -> tuning_pb2.TuningEvent:
    """The message of an event."""
    content = {"note": payload.text} if isinstance(payload, Note) else {_FIELDS[type(payload)]: payload}
    return fill(tuning_pb2.TuningEvent(), number=number, time=time, **content)
