"""Sampling parameters on the command line: an option for each one, and `NAME=VALUE` where a command sets defaults."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from shared.values.guide import Guide
from shared.values.sampling import PARAMETERS, Sampling
from softprompt.cli.failures import EXIT_INVALID, Failure
from softprompt.cli.field_options import Command, replacing
from softprompt.cli.options import options_under

PANEL = "Sampling (what is left out: the prompt's defaults, then the service's)"
_DEFAULTS = [name for name, parameter in PARAMETERS.items() if parameter.is_default]
_HINTS = {name: hint for name, hint in typing.get_type_hints(Sampling).items() if name in PARAMETERS}
in_sampling = options_under(PANEL)
_GUIDE_OPTIONS: Mapping[str, Any] = {
    "choices": Annotated[
        list[str] | None, in_sampling("--choice", help="The answer is one of these; may be repeated.")
    ],
    "regex": Annotated[str | None, in_sampling("--regex", help="The answer matches this regular expression.")],
    "json_schema": Annotated[
        Path | None,
        in_sampling("--json-schema", metavar="FILE", help="The answer is JSON that is valid under this JSON Schema."),
    ],
    "grammar": Annotated[
        Path | None,
        in_sampling("--grammar", metavar="FILE", help="The answer is a text of this grammar in Lark's syntax."),
    ],
}
"""One option for each kind of guide, by the name of its field."""


def with_sampling_options(command: Command) -> Command:
    """Replace the argument `sampling` of a command by an option for each sampling parameter and kind of guide."""
    options = {name: _option(name) for name in PARAMETERS if name != "guide"} | dict(_GUIDE_OPTIONS)
    return replacing("sampling", options, _sampling)(command)


def _sampling(given: Mapping[str, Any]) -> Sampling:
    values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    guide: dict[str, Any] = {name: _guide_text(values.pop(name)) for name in _GUIDE_OPTIONS}
    guide = {name: value for name, value in guide.items() if value is not None}
    values["guide"] = Guide(**guide) if guide else None
    values["logit_bias"] = _parse_biases(values["logit_bias"] or ())
    return Sampling(**{name: value for name, value in values.items() if value is not None})


def _option(name: str) -> Any:
    parameter, hint = PARAMETERS[name], _HINTS[name]
    if name == "logit_bias":
        return Annotated[list[str] | None, in_sampling(metavar="ID=BIAS", help=parameter.help)]
    kind = list[typing.get_args(hint)[0]] | None if typing.get_origin(hint) is tuple else hint  # type: ignore[misc]
    names = (parameter.option,) if parameter.option else ()
    return Annotated[kind, in_sampling(*names, help=parameter.help)]


def _guide_text(value: str | Path | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
    """The text of a guide, from its file if it is in one. Raises Failure."""
    if not isinstance(value, Path):
        return value
    try:
        return value.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise Failure(f"{value} can't be read: {error.strerror}", EXIT_INVALID) from None
    except UnicodeDecodeError:
        raise Failure(f"{value} is not text in UTF-8", EXIT_INVALID) from None


def _parse_biases(pairs: Sequence[str]) -> dict[int, float] | None:
    """From `ID=BIAS` texts. Raises typer.BadParameter."""
    biases = {}
    for pair in pairs:
        token, _, bias = pair.partition("=")
        try:
            biases[int(token)] = float(bias)
        except ValueError:
            reason = f"{pair!r} must be ID=BIAS, for example 42=-5"
            raise typer.BadParameter(reason, param_hint="--logit-bias") from None
    return biases or None


def parse_sampling(pairs: Sequence[str]) -> Sampling | None:
    """From `NAME=VALUE` texts; a list is `NAME=VALUE,VALUE`. None without any. Raises typer.BadParameter."""
    values: dict[str, Any] = {}
    for pair in pairs:
        name, separator, text = pair.partition("=")
        if not separator or name not in _HINTS or name in ("guide", "logit_bias"):
            raise typer.BadParameter(f"{pair!r} must be NAME=VALUE with one of {', '.join(_DEFAULTS)}")
        try:
            values[name] = _parsed(_HINTS[name], text)
        except ValueError as error:
            raise typer.BadParameter(f"{pair!r} has a value of the wrong kind: {error}") from None
    return Sampling(**values) if values else None


def _parsed(hint: Any, text: str) -> Any:
    """Raises ValueError."""
    if typing.get_origin(hint) is tuple:
        return tuple(_parsed(typing.get_args(hint)[0], part) for part in text.split(","))
    kind = hint
    if typing.get_origin(hint) is types.UnionType:
        kind = next(part for part in typing.get_args(hint) if part is not type(None))
    if kind is bool:
        if text not in ("true", "false"):
            raise ValueError("true or false is expected")
        return text == "true"
    return kind(text)
