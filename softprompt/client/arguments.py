"""Checks the arguments of the client's methods against their annotations, at one place.

A wrong argument raises InvalidInput with its name, never a TypeError from the inside. `input` and `dataset` may be many
things; `softprompt.client.convert` and `softprompt.data` check them.
"""

from __future__ import annotations

import functools
import inspect
import math
import numbers
import os
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

from shared.close_names import did_you_mean
from shared.errors import FieldViolation, InvalidInput
from shared.violations import items_of, readable
from softprompt.data.values import check_unicode, shown
from softprompt.types.type_names import type_name

C = TypeVar("C", bound=type)
T = TypeVar("T")
_CHECKED_ELSEWHERE = frozenset({"self", "input", "dataset"})


def checks_arguments(client: C) -> C:
    """Wrap the public methods and the constructor of a class, inherited ones too."""
    for name, method in inspect.getmembers(client, inspect.isfunction):
        if name == "__init__" or not name.startswith("_"):
            setattr(client, name, _checked(method))
    return client


def _checked(method: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(method)
    hints: dict[str, Any] = {}

    def bound(self: object, given: tuple[Any, ...], named: dict[str, Any]) -> inspect.BoundArguments:
        if not hints:
            hints.update(typing.get_type_hints(method))
        arguments = signature.bind(self, *given, **named)
        for name, value in arguments.arguments.items():
            parameter = signature.parameters[name]
            if name in _CHECKED_ELSEWHERE or parameter.kind is inspect.Parameter.VAR_KEYWORD:
                continue
            if value is None and parameter.default is not inspect.Parameter.empty:
                arguments.arguments[name] = parameter.default
            else:
                with readable(name):
                    arguments.arguments[name] = checked(value, hints.get(name), name)
        return arguments

    if inspect.iscoroutinefunction(method):

        @functools.wraps(method)
        async def call_later(self: object, *given: Any, **named: Any) -> Any:
            arguments = bound(self, given, named)
            return await method(*arguments.args, **arguments.kwargs)

        return call_later

    @functools.wraps(method)
    def call(self: object, *given: Any, **named: Any) -> Any:
        arguments = bound(self, given, named)
        return method(*arguments.args, **arguments.kwargs)

    return call


def checked(value: Any, hint: Any, name: str) -> Any:
    """The value as its annotation has it: numpy's numbers become Python's. Raises InvalidInput naming the argument."""
    options = [option for option in _options(hint) if option is not type(None)]
    if value is None and len(options) < len(_options(hint)):
        return None
    if Path in options:
        return _path(value, name)
    if len(options) == 1:
        return _as(value, options[0], name)
    lists = [option for option in options if typing.get_origin(option) is Sequence]
    scalars = [option for option in options if option not in lists]
    if len(lists) == len(scalars) == 1:
        return _as(value, lists[0] if _is_list(value) else scalars[0], name)
    return value


def _options(hint: Any) -> Sequence[Any]:
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _as(value: Any, hint: Any, name: str) -> Any:
    origin = typing.get_origin(hint) or hint
    if hint in _SCALARS:
        return _SCALARS[hint](value, name)
    if origin is Sequence:
        if not _is_list(value):
            raise _wrong(name, "a list", value)
        (element,) = typing.get_args(hint)
        return [checked(item, element, f"{name}[{index}]") for index, item in enumerate(items_of(value, name))]
    if origin is Mapping:
        if not isinstance(value, Mapping):
            raise _wrong(name, "a mapping", value)
        key_hint, value_hint = typing.get_args(hint)
        return {
            checked(key, key_hint, name): checked(item, value_hint, f"{name}[{shown(key)}]")
            for key, item in value.items()
        }
    if origin is Callable:
        if not callable(value):
            raise _wrong(name, "a function", value)
    elif isinstance(origin, type) and issubclass(origin, Enum):
        if not isinstance(value, str) or value not in [str(one.value) for one in origin]:
            raise _wrong(name, f"one of {', '.join(str(one.value) for one in origin)}", value)
        return origin(value)
    elif isinstance(origin, type) and is_dataclass(origin):
        if isinstance(value, Mapping):
            return built(origin, value, name)
        if not isinstance(value, origin):
            raise _wrong(name, f"a value of type {origin.__name__}", value)
        return _completed(value, name)
    return value


def built(kind: type[T], content: Mapping[Any, Any], name: str) -> T:
    """A dataclass with the fields of a mapping. Raises InvalidInput naming the field that is unknown or missing."""
    known = [item.name for item in fields(typing.cast(Any, kind)) if item.init]
    wrong = [
        (shown(key) if not isinstance(key, str) else key, f"is not a field of {kind.__name__}{_meant(key, known)}")
        for key in content
        if key not in known
    ]
    wrong += [
        (item.name, "is missing")
        for item in fields(typing.cast(Any, kind))
        if item.name not in content and item.default is item.default_factory is MISSING
    ]
    if wrong:
        raise InvalidInput([FieldViolation(f"{name}.{field}", text) for field, text in wrong])
    return _completed(kind(**content), name)


def _meant(key: Any, known: Sequence[str]) -> str:
    return did_you_mean(key, known) if isinstance(key, str) else ""


def _completed(value: T, name: str) -> T:
    """The dataclass with dataclasses in place of the mappings that its fields have."""
    found: dict[str, Any] = {}
    hints = typing.get_type_hints(type(value))
    for field in fields(typing.cast(Any, value)):
        content, below = getattr(value, field.name), f"{name}.{field.name}"
        kind = next((one for one in _options(hints[field.name]) if isinstance(one, type) and is_dataclass(one)), None)
        if kind is not None and isinstance(content, Mapping):
            found[field.name] = built(kind, content, below)
        elif kind is not None and isinstance(content, kind):
            found[field.name] = _completed(content, below)
    return typing.cast(T, replace(typing.cast(Any, value), **found)) if found else value


def _is_list(value: Any) -> bool:
    return isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping)


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise _wrong(name, "text", value)
    return check_unicode(value, name)


def _whole(value: Any, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise _wrong(name, "a whole number", value)
    number = int(value)
    if not -(1 << 63) <= number < 1 << 63:
        raise InvalidInput.of(name, "has more than 64 bits")
    return number


def _real(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise _wrong(name, "a number", value)
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if math.isnan(number):
        raise InvalidInput.of(name, "must be a number, not nan")
    return number


def _flag(value: Any, name: str) -> bool:
    if not isinstance(value, bool) and type(value).__name__ not in ("bool", "bool_"):  # numpy's are none of Python's
        raise _wrong(name, "true or false", value)
    return bool(value)


def _path(value: Any, name: str) -> Path:
    if not isinstance(value, str | bytes | os.PathLike):
        raise _wrong(name, "a path", value)
    path = os.fsdecode(value)
    try:
        os.fsencode(path)
    except UnicodeEncodeError:
        raise InvalidInput.of(name, f"{shown(path)} is not a file name") from None
    if "\0" in path:
        raise InvalidInput.of(name, f"{shown(path)} is not a file name: it has a null character")
    return Path(path)


_SCALARS: dict[Any, Callable[[Any, str], Any]] = {str: _text, int: _whole, float: _real, bool: _flag}


def _wrong(name: str, expected: str, value: Any) -> InvalidInput:
    what = type_name(value)
    return InvalidInput.of(name, f"must be {expected}, not {shown(value) if isinstance(value, str) else what}")
