"""Values and models as the JSON of the job store, and back."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

from pydantic import TypeAdapter

T = TypeVar("T")


def to_json(value: object) -> str:
    """The JSON of a model or of a value of `shared.values`."""
    return _adapter(type(value)).dump_json(value).decode()


def from_json(kind: type[T], text: str | bytes) -> T:
    """Raises pydantic.ValidationError for JSON that is not one of `kind`."""
    value: T = _adapter(kind).validate_json(text)
    return value


def from_plain(kind: type[T], plain: object) -> T:
    """Like `from_json`, from parsed JSON."""
    value: T = _adapter(kind).validate_python(plain)
    return value


_cached_adapter: Callable[[Any], TypeAdapter[Any]] = cache(TypeAdapter)


def _adapter(kind: Any) -> TypeAdapter[Any]:
    return _cached_adapter(kind)
