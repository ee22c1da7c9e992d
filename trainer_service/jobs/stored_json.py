"""Values and models as the JSON of the job store, and back."""

from __future__ import annotations

from collections.abc import Hashable
from functools import cache
from typing import Any, TypeVar, cast

from pydantic import TypeAdapter

T = TypeVar("T")


def to_json(value: object) -> str:
    """The JSON of a model or of a value of `shared.values`."""
    return _adapter(cast(Hashable, type(value))).dump_json(value).decode()


def from_json(kind: type[T], text: str | bytes) -> T:
    """Raises pydantic.ValidationError for JSON that is not one of `kind`."""
    value: T = _adapter(cast(Hashable, kind)).validate_json(text)
    return value


def from_plain(kind: type[T], plain: object) -> T:
    """Like `from_json`, from parsed JSON."""
    value: T = _adapter(cast(Hashable, kind)).validate_python(plain)
    return value


@cache
def _adapter(kind: Hashable) -> TypeAdapter[Any]:
    return TypeAdapter(cast(Any, kind))
