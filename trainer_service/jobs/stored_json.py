"""Values and models as the JSON of the job store, and back."""

from __future__ import annotations

from functools import cache
from typing import Any, TypeVar

from pydantic import TypeAdapter

T = TypeVar("T")


def to_json(value: object) -> str:
    """The JSON of a model or of a value of `shared.values`."""
    key: Any = type(value)
    return _adapter(key).dump_json(value).decode()


def from_json(kind: type[T], text: str | bytes) -> T:
    """Raises pydantic.ValidationError for JSON that is not one of `kind`."""
    key: Any = kind  # mypy does not know that all types are hashable
    value: T = _adapter(key).validate_json(text)
    return value


def from_plain(kind: type[T], plain: object) -> T:
    """Like `from_json`, from parsed JSON."""
    key: Any = kind  # mypy does not know that all types are hashable
    value: T = _adapter(key).validate_python(plain)
    return value


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)
