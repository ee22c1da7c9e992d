"""Messages as pydantic models of the services, with the problems named as in the message."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from google.protobuf.message import Message
from pydantic import BaseModel, ValidationError

from shared.violations import Violations

Model = TypeVar("Model", bound=BaseModel)

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
