"""Sampling parameters on the command line: an option for each one, and `NAME=VALUE` where a command sets defaults."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Annotated, Any

import typer

from shared.values.sampling import PARAMETERS, Sampling

PANEL = "Sampling (what is left out: the prompt's defaults, then the service's)"
_HINTS = {name: hint for name, hint in typing.get_type_hints(Sampling).items() if name in PARAMETERS}


def with_sampling_options(command: Callable[..., None]) -> Callable[..., None]:
    """Replace the argument `sampling` of a command by an option for each sampling parameter."""
    own = inspect.signature(command, eval_str=True)
    options = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_option(name))
        for name in PARAMETERS
    ]
    kept = [parameter for parameter in own.parameters.values() if parameter.name != "sampling"]

    @wraps(command)
    def with_options(**given: Any) -> None:
        values = {name: given.pop(name) for name in PARAMETERS}
        values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
        command(sampling=Sampling(**{name: value for name, value in values.items() if value is not None}), **given)

    with_options.__signature__ = own.replace(parameters=[*kept, *options])  # type: ignore[attr-defined]
    with_options.__annotations__ = {parameter.name: parameter.annotation for parameter in (*kept, *options)}
    return with_options


def _option(name: str) -> Any:
    parameter, hint = PARAMETERS[name], _HINTS[name]
    kind = list[typing.get_args(hint)[0]] | None if typing.get_origin(hint) is tuple else hint  # type: ignore[misc]
    names = (parameter.option,) if parameter.option else ()
    return Annotated[kind, typer.Option(*names, help=parameter.help, rich_help_panel=PANEL)]


def parse_sampling(pairs: Sequence[str]) -> Sampling | None:
    """From `NAME=VALUE` texts; a list is `NAME=VALUE,VALUE`. None without any. Raises typer.BadParameter."""
    values: dict[str, Any] = {}
    for pair in pairs:
        name, separator, text = pair.partition("=")
        if not separator or name not in _HINTS:
            raise typer.BadParameter(f"{pair!r} must be NAME=VALUE with one of {', '.join(PARAMETERS)}")
        try:
            values[name] = _parsed(_HINTS[name], text)
        except ValueError as error:
            raise typer.BadParameter(f"{pair!r} has a value of the wrong kind: {error}") from None
    return Sampling(**values) if values else None


def _parsed(hint: Any, text: str) -> Any:
    """Raises ValueError."""
    if typing.get_origin(hint) is tuple:
        return tuple(_parsed(typing.get_args(hint)[0], part) for part in text.split(","))
    kind = (
        next(part for part in typing.get_args(hint) if part is not type(None))
        if typing.get_origin(hint) is types.UnionType
        else hint
    )
    if kind is bool:
        if text not in ("true", "false"):
            raise ValueError("true or false is expected")
        return text == "true"
    return kind(text)
