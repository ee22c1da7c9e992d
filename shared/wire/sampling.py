"""The `SamplingParams` message as `Sampling`, and back."""

from __future__ import annotations

from prompttuning.v1 import common_pb2

from shared.values.guide import Guide
from shared.values.sampling import Sampling
from shared.violations import Violations
from shared.wire.fields import short_float
from shared.wire.mirror import fill, read_fields, reader, write, writer


@reader(Sampling)
def read_sampling(
    message: common_pb2.SamplingParams, path: str = "sampling", violations: Violations | None = None
) -> Sampling:
    """The parameters as the caller wrote them, unchecked: 32-bit numbers get their shortest decimal form."""
    values = read_fields(Sampling, message, path, violations)
    values |= {name: short_float(value) for name, value in values.items() if isinstance(value, float)}
    values["logit_bias"] = {token: short_float(bias) for token, bias in message.logit_bias.items()} or None
    return Sampling(**values)


def write_sampling(sampling: Sampling | None) -> common_pb2.SamplingParams:
    """The message; None is the empty one. Raises InvalidInput for a value that doesn't fit its field."""
    message = common_pb2.SamplingParams()
    return message if sampling is None else write(sampling, message, "sampling")


@reader(Guide)
def _read_guide(message: common_pb2.Guide, path: str = "guide", violations: Violations | None = None) -> Guide:
    match message.WhichOneof("kind"):
        case None:
            return Guide()
        case "choices":
            return Guide(choices=tuple(message.choices.texts))
        case kind:
            return Guide(**{kind: getattr(message, kind)})


@writer(Guide)
def _write_guide(guide: Guide, message: common_pb2.Guide, path: str = "guide") -> None:
    violations = Violations()
    guide.check(path, violations)
    violations.raise_if_any()
    if guide.choices:
        fill(message.choices, f"{path}.choices", texts=guide.choices)
    fill(message, path, regex=guide.regex, json_schema=guide.json_schema, grammar=guide.grammar)
