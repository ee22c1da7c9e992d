"""Conversion of numbers, durations and times."""

from __future__ import annotations

import ctypes
import math
from datetime import UTC, datetime

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from shared.violations import Violations

_MAX_DURATION_SECONDS = 315_576_000_000  # ten thousand years: the bound of google.protobuf.Duration


def short_float(value: float) -> float:
    """The shortest decimal number with the same 32-bit value: 0.7, not 0.699999988079071."""
    if not math.isfinite(value):
        return value
    candidates = (float(f"{value:.{digits}g}") for digits in range(6, 10))
    return next((short for short in candidates if ctypes.c_float(short).value == value), value)


def read_duration(duration: Duration, field: str, violations: Violations | None) -> float | None:
    """Seconds. A duration whose signs differ or that is out of range is a violation, if these are collected."""
    in_range = abs(duration.seconds) <= _MAX_DURATION_SECONDS and abs(duration.nanos) < 1_000_000_000
    if violations is not None and (not in_range or duration.seconds * duration.nanos < 0):
        violations.add(field, "is not a duration")
        return None
    return duration.seconds + duration.nanos / 1e9


def duration_nanoseconds(seconds: float) -> int:
    """Nanoseconds, cut to the longest duration that protobuf allows."""
    return round(min(seconds, _MAX_DURATION_SECONDS) * 1e9)


def read_timestamp(timestamp: Timestamp, field: str, violations: Violations | None) -> datetime | None:
    """A time in UTC; None if it is out of range, which is a violation, if these are collected."""
    try:
        return timestamp.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError):
        if violations is not None:
            violations.add(field, "is not a time between the years 1 and 9999")
        return None
