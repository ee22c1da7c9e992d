"""Small conversions that every message needs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, TypeVar

import numpy
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from pydantic import BaseModel, ValidationError

from trainer_service.violations import Violations

Model = TypeVar("Model", bound=BaseModel)

_MAX_DURATION_SECONDS = 315_576_000_000  # ten thousand years: the bound of google.protobuf.Duration
_MAX_SHOWN_CHARS = 80


def build(
    model: type[Model], values: Mapping[str, object], field: str, names: Mapping[str, str], violations: Violations
) -> Model | None:
    """The domain object, or None after its problems were added to `violations`.

    `field` is where it stands in the message; `names` gives the message's name for a field that the domain calls
    otherwise.
    """
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        for problem in error.errors(include_url=False, include_context=False):
            violations.add(_path(field, problem["loc"], names), _describe(problem["msg"], problem["input"]))
        return None


def _path(field: str, location: tuple[int | str, ...], names: Mapping[str, str]) -> str:
    path = field
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{names.get(part, part)}"
    return path.removeprefix(".")


def _describe(message: str, value: object) -> str:
    text = message.replace("Input should", "should", 1)
    if isinstance(value, bool | int | float):
        return f"{text}, not {value}"
    if isinstance(value, str) and len(value) <= _MAX_SHOWN_CHARS:
        return f"{text}, not {value!r}"
    return text


def present(message: Message, names: Iterable[str]) -> dict[str, Any]:
    """The scalar fields among `names` that the caller set; an `optional` field that was left out is not there."""
    return {name: getattr(message, name) for name in names if message.HasField(name)}


def short_float(value: float) -> float:
    """What a caller meant by a 32-bit field: 0.7, not 0.699999988079071."""
    return float(str(numpy.float32(value))) if math.isfinite(value) else value


def from_duration(duration: Duration, field: str, violations: Violations) -> float | None:
    """Seconds; malformed durations (signs that differ, out of range) are violations."""
    sound = abs(duration.seconds) <= _MAX_DURATION_SECONDS and abs(duration.nanos) < 1_000_000_000
    if not sound or duration.seconds * duration.nanos < 0:
        violations.add(field, "is not a duration")
        return None
    return duration.seconds + duration.nanos / 1e9


def to_duration(seconds: float) -> Duration:
    whole = int(min(seconds, _MAX_DURATION_SECONDS))
    return Duration(seconds=whole, nanos=int((seconds - whole) * 1e9) if whole < _MAX_DURATION_SECONDS else 0)


def from_timestamp(timestamp: Timestamp, field: str, violations: Violations) -> datetime | None:
    """A time that is out of range is a violation."""
    try:
        return timestamp.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError):
        violations.add(field, "is not a time between the years 1 and 9999")
        return None


def to_timestamp(time: datetime | None) -> Timestamp | None:
    if time is None:
        return None
    stamp = Timestamp()
    stamp.FromDatetime(time)
    return stamp
