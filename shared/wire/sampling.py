"""The `SamplingParams` message as `Sampling`, and back."""

from __future__ import annotations

from prompttuning.v1 import common_pb2

from shared.errors import InvalidInput
from shared.values.guide import Guide
from shared.values.sampling import Sampling
from shared.violations import Violations
from shared.wire.fields import short_float
from shared.wire.mirror import fill, read_fields, reader, write


@reader(Sampling)
def read_sampling(message: common_pb2.SamplingParams) -> Sampling:
    """The parameters as the caller wrote them, unchecked: 32-bit numbers get their shortest decimal form."""
    values = read_fields(Sampling, message)
    values |= {name: short_float(value) for name, value in values.items() if isinstance(value, float)}
    values["logit_bias"] = {token: short_float(bias) for token, bias in message.logit_bias.items()} or None
    return Sampling(**values)


def write_sampling(sampling: Sampling | None) -> common_pb2.SamplingParams:
    """The message; None is the empty one. Raises InvalidInput for a value that doesn't fit its field."""
    message = common_pb2.SamplingParams()
    if sampling is None:
        return message
    write(sampling, message, "sampling", skip=("guide",))
    if sampling.guide is not None:
        _write_guide(sampling.guide, message.guide)
    return message


@reader(Guide)
def _read_guide(message: common_pb2.Guide) -> Guide:
    match message.WhichOneof("kind"):
        case None:
            return Guide()
        case "choices":
            return Guide(choices=tuple(message.choices.texts))
        case kind:
            return Guide(**{kind: getattr(message, kind)})


def _write_guide(guide: Guide, message: common_pb2.Guide) -> None:
    if not isinstance(guide, Guide):
        raise InvalidInput.of("sampling.guide", f"{guide!r:.80} does not fit: a Guide is expected")
    violations = Violations()
    guide.check("sampling.guide", violations)
    violations.raise_if_any()
    if guide.choices:
        fill(message.choices, "sampling.guide.choices", texts=guide.choices)
    fill(message, "sampling.guide", regex=guide.regex, json_schema=guide.json_schema, grammar=guide.grammar)
