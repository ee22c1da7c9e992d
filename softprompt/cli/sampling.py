"""Sampling parameters on the command line: an option for each one, and `NAME=VALUE` where a command sets defaults."""

from __future__ import annotations

import types
import typing
from collections.abc import Sequence
from dataclasses import fields
from typing import Annotated, Any

import typer

from softprompt.types.common import Sampling

PANEL = "Sampling (what is left out: the prompt's defaults, then the service's)"


def _option(help: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=PANEL, **more)


TemperatureOption = Annotated[float | None, _option("0 always takes the most probable token.")]
TopKOption = Annotated[int | None, _option("Only the k most probable tokens.")]
TopPOption = Annotated[float | None, _option("Only the most probable tokens whose probabilities add up to this.")]
MinPOption = Annotated[
    float | None, _option("Only tokens at least this fraction as probable as the most probable one.")
]
RepetitionPenaltyOption = Annotated[float | None, _option("Above 1: tokens that occurred become less probable.")]
PresencePenaltyOption = Annotated[float | None, _option("Subtracted from the logits of generated tokens, once each.")]
FrequencyPenaltyOption = Annotated[
    float | None, _option("Subtracted from the logits of generated tokens, once for each time.")
]
SeedOption = Annotated[int | None, _option("The same seed gives the same text.")]
StopOption = Annotated[list[str] | None, _option("Stop before this text; may be repeated.", "--stop")]
StopTokenOption = Annotated[list[int] | None, _option("Stop at this token id; may be repeated.", "--stop-token-id")]
MaxNewTokensOption = Annotated[int | None, _option("Upper bound of generated tokens.")]
MinNewTokensOption = Annotated[int | None, _option("No end of sequence before this many tokens.")]
IgnoreEosOption = Annotated[bool | None, _option("Go on after the end of sequence.", "--ignore-eos")]
LogprobsOption = Annotated[
    int | None, _option("Alternatives with log-probabilities for each token; --json shows them.", "--logprobs")
]


def parse_sampling(pairs: Sequence[str]) -> Sampling | None:
    """From `NAME=VALUE` texts; a list is `NAME=VALUE,VALUE`. None without any. Raises typer.BadParameter."""
    hints = typing.get_type_hints(Sampling)
    values: dict[str, Any] = {}
    for pair in pairs:
        name, separator, text = pair.partition("=")
        if not separator or name not in hints:
            raise typer.BadParameter(
                f"{pair!r} must be NAME=VALUE with one of {', '.join(item.name for item in fields(Sampling))}"
            )
        try:
            values[name] = _parsed(hints[name], text)
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
