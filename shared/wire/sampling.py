"""The `SamplingParams` message as `Sampling`, and back."""

from __future__ import annotations

from prompttuning.v1 import common_pb2

from shared.values.sampling import Sampling
from shared.violations import Violations
from shared.wire.fields import short_float
from shared.wire.mirror import read_fields, reader, write


@reader(Sampling)
def read_sampling(
    message: common_pb2.SamplingParams, path: str = "sampling", violations: Violations | None = None
) -> Sampling:
    """The parameters as the caller wrote them, unchecked: 32-bit numbers get their shortest decimal form."""
    values = read_fields(Sampling, message, path, violations)
    values |= {name: short_float(value) for name, value in values.items() if isinstance(value, float)}
    return Sampling(**values)


def write_sampling(sampling: Sampling | None) -> common_pb2.SamplingParams:
    """The message; None is the empty one. Raises InvalidInput for a value that doesn't fit its field."""
    message = common_pb2.SamplingParams()
    return message if sampling is None else write(sampling, message, "sampling")
