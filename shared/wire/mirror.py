"""Conversion between protobuf messages and the dataclasses that mirror them, by field name.

A dataclass field has the name of its message's field; a Duration `x` is `x_seconds`. None means "left out", and for an
enum UNSPECIFIED. `reader` registers a function for a message of another shape, such as a oneof. A test checks that
every dataclass fits its message.
"""

from __future__ import annotations

import numbers
import reprlib
import types
import typing
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import fields, is_dataclass
from datetime import datetime
from functools import cache, partial
from itertools import islice
from typing import Any, TypeVar, Union

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct, Value
from google.protobuf.timestamp_pb2 import Timestamp

from shared.errors import InvalidInput, SoftPromptError
from shared.violations import MAX_ITEMS, Violations
from shared.wire.enums import enum_number, enum_reader
from shared.wire.fields import duration_nanoseconds, read_duration, read_timestamp

T = TypeVar("T")
M = TypeVar("M", bound=Message)
Reader = Callable[[Any, str, Violations | None], Any]
F = TypeVar("F", bound=Reader)
Writer = Callable[[Any, Any, str], None]
Putter = Callable[[Any, Any, str], None]
W = TypeVar("W", bound=Writer)
_PROTOBUF = {"Value out of range": "it is out of range", "bad argument type": "text is expected"}
"""Beginnings of errors of protobuf, and what to say instead."""
Descriptor = Any  # its type depends on protobuf's implementation (upb or Python)

_special_readers: dict[type, Reader] = {}
_special_writers: dict[type, Writer] = {}


def reader(kind: type) -> Callable[[F], F]:
    """Register the function that reads `kind` from a message of another shape, with the arguments of `read`."""

    def register(function: F) -> F:
        _special_readers[kind] = function
        return function

    return register


def read(kind: type[T], message: Message, path: str = "", violations: Violations | None = None) -> T:
    """A `kind` with the values of the message.

    Values that this build can't read (a newer enum value, a malformed time) are added to `violations`, below `path`;
    without `violations`, an enum value becomes None. Ranges are not checked: `kind` has a `check` for that.
    """
    if special := _special_readers.get(kind):
        return typing.cast(T, special(message, path, violations))
    return kind(**read_fields(kind, message, path, violations))


def read_checked(kind: type[T], message: Message, path: str = "") -> T:
    """Like `read`. Raises InvalidInput with all values that this build can't read."""
    violations = Violations()
    found = read(kind, message, path, violations)
    violations.raise_if_any()
    return found


def read_fields(kind: type, message: Message, path: str = "", violations: Violations | None = None) -> dict[str, Any]:
    """Constructor arguments of `kind`: every field that the message has under the same name."""
    readers = _readers(kind, typing.cast(Any, type(message)))
    return {name: get(message, path, violations) for name, get in readers}


def writer(kind: type) -> Callable[[W], W]:
    """Register the function that writes `kind` (and its subclasses) to a message of another shape."""

    def register(function: W) -> W:
        _special_writers[kind] = function
        return function

    return register


def write(value: Any, message: M, path: str = "") -> M:
    """Fill a message from a dataclass. None stays unset. Raises InvalidInput naming the field below `path`."""
    kind: Any = type(value)
    if not hasattr(kind, "__dataclass_fields__"):
        raise InvalidInput.of(
            path, f"{_shown(value)} does not fit: a value of type {type(message).__name__} is expected"
        )
    special = _special_writer(kind)
    if special is None:
        return write_fields(value, message, path)
    special(value, message, path)
    return message


@cache
def _special_writer(kind: type) -> Writer | None:
    return next((_special_writers[base] for base in kind.__mro__ if base in _special_writers), None)


def write_fields(value: Any, message: M, path: str = "", skip: Container[str] = ()) -> M:
    """Fill a message from the fields of a dataclass that have the same name there, without the fields in `skip`."""
    for name, put in _putters(typing.cast(Any, type(value)), typing.cast(Any, type(message))):
        content = getattr(value, name)
        if content is not None and name not in skip:
            _put(put, message, content, path, name)
    return message


def fill(message: M, path: str = "", **content: Any) -> M:
    """Set fields by name; None leaves a field unset. Raises InvalidInput naming a field whose value does not fit."""
    for name, value in content.items():
        if value is not None:
            _put(_putter(message.DESCRIPTOR.fields_by_name[name]), message, value, path, name)
    return message


def _put(put: Putter, message: Message, content: Any, path: str, name: str) -> None:
    try:
        put(message, content, path)
    except SoftPromptError:
        raise
    except Exception as error:  # a caller's object may raise anything
        raise _misfit(_below(path, name), content, error) from error


def _append(elements: Any, element: Any, path: str) -> None:
    try:
        elements.append(element)
    except Exception as error:
        raise _misfit(path, element, error) from error


def _misfit(path: str, value: Any, error: Exception) -> InvalidInput:
    text = next((sentence for begin, sentence in _PROTOBUF.items() if str(error).startswith(begin)), str(error))
    if isinstance(error, UnicodeEncodeError):
        text = f"half a surrogate pair is at character {error.start + 1}"
    return InvalidInput.of(path, f"{_shown(value)} does not fit: {text}")


@cache
def _putters(kind: Any, message_type: Any) -> tuple[tuple[str, Putter], ...]:
    descriptors = message_type.DESCRIPTOR.fields_by_name
    found = ((item.name, _message_field(item.name, descriptors)) for item in fields(kind))
    return tuple((own, _putter(descriptors[name])) for own, name in found if name is not None)


@cache
def _putter(descriptor: Descriptor) -> Putter:
    """Sets a field of a message below `path` to a value."""
    name, kind = descriptor.name, descriptor.message_type

    def message_put(message: Any, content: Any, path: str) -> None:
        target = getattr(message, name)
        target.SetInParent()
        write(content, target, _below(path, name))

    def messages_put(message: Any, content: Any, path: str) -> None:
        target = getattr(message, name)
        for index, element in enumerate(_elements(content, _below(path, name))):
            write(element, target.add(), f"{_below(path, name)}[{index}]")

    def list_put(message: Any, content: Any, path: str) -> None:
        if isinstance(content, str):
            raise TypeError("a list is expected, not one text")
        content = _elements(content, _below(path, name))
        if descriptor.enum_type is not None:
            content = [enum_number(descriptor.enum_type, value) for value in content]
        elements = getattr(message, name)
        for index, element in enumerate(content):
            _append(elements, element, f"{_below(path, name)}[{index}]")

    def time_put(message: Any, content: Any, path: str) -> None:
        if not isinstance(content, datetime):
            raise TypeError("a datetime is expected")
        if content.tzinfo is None:
            raise ValueError("a time zone is missing")
        getattr(message, name).FromDatetime(content)

    if _is_message(descriptor, Struct) or (kind is not None and kind.GetOptions().map_entry):
        return lambda message, content, path: getattr(message, name).update(content)
    if descriptor.is_repeated:
        return list_put if kind is None else messages_put
    if _is_message(descriptor, Timestamp):
        return time_put
    if _is_message(descriptor, Duration):
        return lambda message, content, path: getattr(message, name).FromNanoseconds(
            duration_nanoseconds(_number(content))
        )
    if descriptor.enum_type is not None:
        return lambda message, content, path: setattr(message, name, enum_number(descriptor.enum_type, content))
    if kind is not None:
        return message_put
    if descriptor.cpp_type not in (FieldDescriptor.CPPTYPE_STRING, FieldDescriptor.CPPTYPE_BOOL):
        return lambda message, content, path: setattr(message, name, _number(content))
    return lambda message, content, path: setattr(message, name, content)


def _elements(content: Any, path: str) -> Iterable[Any]:
    """The elements of a list field. An iterable other than a list or tuple may be endless, so its length is limited."""
    if isinstance(content, list | tuple):
        return content
    if len(found := list(islice(content, MAX_ITEMS + 1))) > MAX_ITEMS:
        raise InvalidInput.of(path, f"has more than {MAX_ITEMS} items")
    return found


def _shown(value: object) -> str:
    try:
        return reprlib.repr(value)
    except ValueError:  # Python refuses to write integers of more than 4,300 digits
        return f"a value of type {type(value).__name__}"


def _number(value: Any) -> Any:
    """Protobuf also takes True for 1, and numpy's complex numbers without their imaginary part."""
    if type(value) not in (int, float) and (isinstance(value, bool) or not isinstance(value, numbers.Real)):
        raise TypeError("a number is expected")
    return value


@cache
def _readers(kind: Any, message_type: Any) -> tuple[tuple[str, Reader], ...]:
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


def _field_reader(descriptor: Descriptor, hint: Any) -> Reader:
    name, inner = descriptor.name, _strip_optional(hint)
    if typing.get_origin(inner) in (Mapping, dict) and not _is_message(descriptor, Struct):
        return lambda message, path, violations: dict(getattr(message, name))
    origin = typing.get_origin(inner)
    collect: Callable[[Any], Any] | None = origin if origin in (tuple, frozenset) else None
    convert = _value_reader(descriptor, inner if collect is None else typing.get_args(inner)[0])
    if convert is None:
        collect = collect or _unchanged
        if _is_optional(hint) and descriptor.has_presence:
            return lambda message, path, violations: getattr(message, name) if message.HasField(name) else None
        return lambda message, path, violations: collect(getattr(message, name))
    if collect is not None:
        return lambda message, path, violations: collect(
            convert(element, f"{_below(path, name)}[{index}]", violations)
            for index, element in enumerate(getattr(message, name))
        )
    if _is_optional(hint) and descriptor.has_presence:
        return lambda message, path, violations: (
            convert(getattr(message, name), _below(path, name), violations) if message.HasField(name) else None
        )
    return lambda message, path, violations: convert(getattr(message, name), _below(path, name), violations)


def _value_reader(descriptor: Descriptor, hint: Any) -> Reader | None:
    """Reads one value of a field; None: the value stays as it is."""
    if _is_message(descriptor, Timestamp):
        return read_timestamp
    if _is_message(descriptor, Duration):
        return read_duration
    if _is_message(descriptor, Struct):
        return lambda struct, path, violations: _read_struct(struct)
    if isinstance(hint, type) and is_dataclass(hint):
        return partial(read, hint)
    if descriptor.enum_type is not None:
        return enum_reader(descriptor.enum_type, hint)
    return None


def _below(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _unchanged(value: Any) -> Any:
    return value


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


def _is_optional(hint: Any) -> bool:
    return typing.get_origin(hint) in (Union, types.UnionType) and type(None) in typing.get_args(hint)


def _strip_optional(hint: Any) -> Any:
    return next(part for part in typing.get_args(hint) if part is not type(None)) if _is_optional(hint) else hint
