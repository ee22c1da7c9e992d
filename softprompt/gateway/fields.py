"""What requests of several endpoints have in common: strict fields, messages, sampling parameters, names in errors."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    WrapValidator,
    field_validator,
)
from pydantic_core import PydanticCustomError

from shared.values.message import Message
from shared.values.sampling import Sampling
from softprompt.gateway.errors import Rename

MODEL_CHARS = 200
_TOKEN_ID = re.compile(r"0|[1-9][0-9]{0,8}")
_ROLES = {"developer": "system"}
"""OpenAI's names of roles that the base models' chat templates call otherwise."""


class Fields(BaseModel):
    """An object of a request: no field that it doesn't have, no conversion between types, no NaN."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


def else_saying(sentence: str) -> WrapValidator:
    """Refuses with this sentence what a union of several types refuses, since each of its members has a reason."""

    def check(value: Any, handler: Any) -> Any:
        try:
            return handler(value)
        except ValidationError:
            raise PydanticCustomError("value", "{sentence}", {"sentence": sentence}) from None

    return WrapValidator(check)


ModelName = Annotated[str, Field(min_length=1, max_length=MODEL_CHARS)]


def _no_number(value: Any) -> Any:
    if value == 0 and value is not False:
        raise PydanticCustomError("literal_error", "Input should be False")
    return value


OnlyFalse = Annotated[Literal[False], BeforeValidator(_no_number)]
"""False, and not 0, which pydantic takes for it."""


def text_or_list(value: Any) -> str | list[Any]:
    """`value`, which must be one of both, so that the error names both."""
    if not isinstance(value, str | list):
        raise PydanticCustomError("list_type", "Input should be a valid string or list")
    return value


def text_as(make: Callable[[str], list[Any]], kind: Any) -> BeforeValidator:
    """Accepts a text for a list, which `make` makes of it. `kind`: both types, for the schema."""

    def as_list(value: Any) -> list[Any]:
        return make(value) if isinstance(text_or_list(value), str) else value

    return BeforeValidator(as_list, json_schema_input_type=kind)


Stop = Annotated[list[str], text_as(lambda text: [text], str | list[str])]
"""One text or several at which an answer stops."""


class TextPart(Fields):
    """A part of a message's content."""

    type: Literal["text", "input_text", "output_text"]
    text: str
    annotations: list[None] | None = Field(default=None, max_length=0)
    logprobs: list[Any] | None = None
    """Of an answer that comes back as a part of the conversation; not read."""


Content = Annotated[
    list[TextPart], Field(min_length=1), text_as(lambda text: [{"type": "text", "text": text}], str | list[TextPart])
]
"""A text, or text parts, which are joined by line breaks as in training data."""


def text_of(content: Sequence[TextPart]) -> str:
    """The text of a content."""
    return "\n".join(part.text for part in content)


def message_of(role: str, content: Sequence[TextPart]) -> Message:
    """A message as the services take it."""
    return Message(_ROLES.get(role, role), text_of(content))


def _as_ids(value: Any) -> Any:
    """JSON's keys are texts."""
    if not isinstance(value, dict):
        return value
    for key in value:
        if not _TOKEN_ID.fullmatch(key):
            raise PydanticCustomError("token_id", "keys must be token ids, not {key}", {"key": repr(key[:40])})
    return {int(key): bias for key, bias in value.items()}


LogitBias = Annotated[dict[int, float], BeforeValidator(_as_ids, json_schema_input_type=dict[str, float])]
"""Bias by token id."""


class StreamOptions(Fields):
    """Options of a stream."""

    include_usage: bool | None = None
    include_obfuscation: OnlyFalse | None = None


class GenerationFields(Fields):
    """The parameters that chat completions and completions have in common."""

    model: ModelName
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = Field(default=None, ge=1)
    temperature: float | None = None
    top_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    stop: Stop | None = None
    logit_bias: LogitBias | None = None
    user: str | None = None

    @field_validator("stream_options")
    @classmethod
    def _only_streams(cls, value: StreamOptions | None, info: ValidationInfo) -> StreamOptions | None:
        if value is not None and not info.data.get("stream"):
            raise ValueError("is only for streams: set stream")
        return value


def sampling_of(request: Any, **more: Any) -> Sampling:
    """The sampling parameters whose names are the same in both APIs, and `more`."""
    names = ("temperature", "top_p", "presence_penalty", "frequency_penalty", "seed")
    given: dict[str, Any] = {name: getattr(request, name, None) for name in names}
    stops = tuple(getattr(request, "stop", None) or ())
    return Sampling(**given, stop_sequences=stops, logit_bias=getattr(request, "logit_bias", None) or None, **more)


_COMMON_NAMES = {
    "input.prompt": "model",
    "input.routing_key": "user",
    "input": "model",
    "sampling.stop_sequences": "stop",
    "sampling": "",
    "priority": "model",
}


def renaming(names: Mapping[str, str]) -> Rename:
    """Turns the services' fields into parameters: `names`, then the names that all generations share."""
    table = sorted({**_COMMON_NAMES, **names}.items(), key=lambda item: -len(item[0]))

    def rename(field: str) -> str:
        for prefix, name in table:
            if field == prefix or field.startswith((f"{prefix}.", f"{prefix}[")):
                return (name + field.removeprefix(prefix)).lstrip(".") or "request"
        return field

    return rename
