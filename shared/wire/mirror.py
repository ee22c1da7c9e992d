"""Conversion between protobuf messages and the dataclasses that mirror them, by field name.

A dataclass field has the name of its message's field; a Duration `x` is `x_seconds`. None means "left out", and for an
enum UNSPECIFIED. `reader` registers a function for a message of another shape, such as a oneof. A test checks that
every dataclass fits its message.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Container, Mapping
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime
from functools import cache
from typing import Any, TypeVar, Union

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct, Value
from google.protobuf.timestamp_pb2 import Timestamp

from shared.errors import InvalidInput
from shared.wire.enums import enum_number, table_of

T = TypeVar("T")
M = TypeVar("M", bound=Message)
Reader = Callable[[Any], Any]
F = TypeVar("F", bound=Reader)
Descriptor = Any  # its type depends on protobuf's implementation (upb or Python)

_special_readers: dict[type, Reader] = {}


def reader(kind: type) -> Callable[[F], F]:
    """Register the function that reads `kind` from a message of another shape."""

    def register(function: F) -> F:
        _special_readers[kind] = function
        return function

    return register


def read(kind: type[T], message: Message) -> T:
    """A `kind` with the values of the message."""
    if special := _special_readers.get(kind):
        return typing.cast(T, special(message))
    return kind(**read_fields(kind, message))


def read_fields(kind: type, message: Message) -> dict[str, Any]:
    """Constructor arguments of `kind`: every field that the message has under the same name."""
    return {name: get(message) for name, get in _readers(kind, typing.cast(Any, type(message)))}


def write(value: Any, message: M, path: str = "", skip: Container[str] = ()) -> M:
    """Fill a message from a dataclass, without the fields in `skip`. None stays unset. Raises InvalidInput naming the
    field.
    """
    descriptors = message.DESCRIPTOR.fields_by_name
    if not is_dataclass(value) or isinstance(value, type):
        raise InvalidInput.of(path, f"{value!r:.80} does not fit: a value of type {type(message).__name__} is expected")
    for item in fields(value):
        if item.name in skip:
            continue
        name = _message_field(item.name, descriptors)
        content = getattr(value, item.name)
        if name is None or content is None:
            continue
        _write_checked(message, descriptors[name], content, f"{path}.{item.name}" if path else item.name)
    return message


def fill(message: M, path: str = "", **content: Any) -> M:
    """Set fields by name; None leaves a field unset. Raises InvalidInput naming a field whose value does not fit."""
    for name, value in content.items():
        if value is not None:
            _write_checked(message, message.DESCRIPTOR.fields_by_name[name], value, f"{path}.{name}" if path else name)
    return message


def _write_checked(message: Message, descriptor: Descriptor, content: Any, where: str) -> None:
    try:
        _write_field(message, descriptor, content, where)
    except (TypeError, ValueError, OverflowError, AttributeError) as error:
        raise InvalidInput.of(where, f"{content!r:.80} does not fit: {error}") from error


def _write_field(message: Message, descriptor: Descriptor, content: Any, where: str) -> None:
    name = descriptor.name
    if is_dataclass(content):
        target = getattr(message, name)
        target.SetInParent()
        write(content, target, where)
    elif isinstance(content, Mapping):
        getattr(message, name).update(content)
    elif isinstance(content, datetime):
        if content.tzinfo is None:
            raise ValueError("a time zone is missing")
        getattr(message, name).FromDatetime(content)
    elif descriptor.message_type is not None and descriptor.message_type.full_name == Duration.DESCRIPTOR.full_name:
        getattr(message, name).FromNanoseconds(round(content * 1e9))
    elif descriptor.is_repeated:
        if isinstance(content, str):
            raise TypeError("a list is expected, not one text")
        target = getattr(message, name)
        for index, element in enumerate(content):
            if is_dataclass(element):
                write(element, target.add(), f"{where}[{index}]")
            else:
                target.append(element)
    elif descriptor.enum_type is not None:
        setattr(message, name, enum_number(descriptor.enum_type, content))
    else:
        setattr(message, name, content)


@cache
def _readers(kind: Any, message_type: Any) -> tuple[tuple[str, Callable[[Message], Any]], ...]:
    """(field name, function that reads it from a message) for each field; computed once for each pair of types."""
    hints = typing.get_type_hints(kind)
    descriptors = message_type.DESCRIPTOR.fields_by_name
    found = ((item.name, _message_field(item.name, descriptors)) for item in fields(kind))
    return tuple((own, _field_reader(descriptors[name], hints[own])) for own, name in found if name is not None)


def _message_field(name: str, descriptors: Mapping[str, Descriptor]) -> str | None:
    if name in descriptors:
        return name
    short = name.removesuffix("_seconds")
    return short if short in descriptors else None


def _field_reader(descriptor: Descriptor, hint: Any) -> Callable[[Message], Any]:
    name, optional = descriptor.name, _is_optional(hint)
    inner = _strip_optional(hint)
    convert = _value_reader(descriptor, inner)
    if typing.get_origin(inner) is tuple:
        return lambda message: tuple(convert(element) for element in getattr(message, name))
    if typing.get_origin(inner) in (Mapping, dict) and not _is_message(descriptor, Struct):
        return lambda message: dict(getattr(message, name))
    if optional and descriptor.has_presence:
        return lambda message: convert(getattr(message, name)) if message.HasField(name) else None
    return lambda message: convert(getattr(message, name))


def _value_reader(descriptor: Descriptor, hint: Any) -> Callable[[Any], Any]:
    if typing.get_origin(hint) is tuple:
        hint = typing.get_args(hint)[0]
    if _is_message(descriptor, Timestamp):
        return _datetime
    if _is_message(descriptor, Duration):
        return lambda duration: duration.ToNanoseconds() / 1e9
    if _is_message(descriptor, Struct):
        return _read_struct
    if isinstance(hint, type) and is_dataclass(hint):
        return lambda message: read(hint, message)
    if descriptor.enum_type is not None:
        return table_of(descriptor.enum_type, hint).from_wire
    return lambda value: value


def _read_struct(struct: Struct) -> dict[str, Any]:
    """JSON as Python's values. Unlike protobuf's own conversion, it takes numbers that are not finite and values
    without a kind, which any client may send: checks of the field refuse them by name.
    """
    return {name: _read_json(value) for name, value in struct.fields.items()}


def _read_json(value: Value) -> Any:
    match value.WhichOneof("kind"):
        case "struct_value":
            return _read_struct(value.struct_value)
        case "list_value":
            return [_read_json(item) for item in value.list_value.values]
        case None | "null_value":
            return None
        case kind:
            return getattr(value, kind)


def _is_message(descriptor: Descriptor, kind: type[Message]) -> bool:
    return descriptor.message_type is not None and descriptor.message_type.full_name == kind.DESCRIPTOR.full_name


def _datetime(timestamp: Timestamp) -> datetime:
    return timestamp.ToDatetime(tzinfo=UTC)


def _is_optional(hint: Any) -> bool:
    return typing.get_origin(hint) in (Union, types.UnionType) and type(None) in typing.get_args(hint)


def _strip_optional(hint: Any) -> Any:
    return next(part for part in typing.get_args(hint) if part is not type(None)) if _is_optional(hint) else hint
