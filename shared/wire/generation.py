"""What a generation is made of, as messages: its input (each form is another field), its sampling parameters and its
template. Numbers come as the caller wrote them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from prompttuning.v1 import common_pb2, generation_pb2

from shared.values.generation import GenerationInput, TokenIds
from shared.values.guide import Guide
from shared.values.message import Message
from shared.values.sampling import Sampling
from shared.values.template import INPUT_FIELD, Template
from shared.violations import Violations
from shared.wire.fields import short_float
from shared.wire.mirror import fill, read, read_fields, reader, write, write_fields, writer


@reader(GenerationInput)
def read_input(
    message: generation_pb2.GenerationInput, path: str = "input", violations: Violations | None = None
) -> GenerationInput:
    """The input, with unchecked lengths. One without content is a violation."""
    content: str | tuple[Message, ...] | TokenIds = message.text
    match message.WhichOneof("content"):
        case "chat":
            content = tuple(read(Message, turn) for turn in message.chat.messages)
        case "token_ids":
            content = read(TokenIds, message.token_ids)
        case None if violations is not None:
            violations.add(path, "must have text, chat or token_ids")
    return GenerationInput(content, **read_fields(GenerationInput, message, path, violations))


@writer(GenerationInput)
def write_input(given: GenerationInput, message: generation_pb2.GenerationInput, path: str = "input") -> None:
    """Writes the input. Raises InvalidInput."""
    write_fields(given, message, path)
    match given.content:
        case str():
            fill(message, path, text=given.content)
        case TokenIds():
            fill(message, path, token_ids=given.content)
        case turns:
            message.chat.SetInParent()
            for index, turn in enumerate(turns):
                write(turn, message.chat.messages.add(), f"{path}.messages[{index}]")


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


@reader(Template)
def read_template(
    message: common_pb2.Template, path: str = "template", violations: Violations | None = None
) -> Template:
    """The template as the caller wrote it, with unchecked ranges: an empty text is the input alone."""
    found = Template(**read_fields(Template, message, path, violations))
    return replace(found, text=found.text or INPUT_FIELD, arguments=_with_integers(found.arguments))


def _with_integers(value: Any) -> Any:
    """JSON as the caller wrote it: a Struct has every number as a float, and templates print 3.0 unlike 3."""
    if isinstance(value, dict):
        return {key: _with_integers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_integers(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
