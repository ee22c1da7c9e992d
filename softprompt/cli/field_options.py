"""Options that are made from the fields of a dataclass, so that the command line can set all that the API can."""

from __future__ import annotations

import inspect
import json
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from enum import Enum
from functools import partial, wraps
from types import MappingProxyType
from typing import Annotated, Any

import typer

from shared.values.enums import InitMethod
from shared.values.hyperparameters import Hyperparameters, Init
from shared.values.template import Template

Command = Callable[..., None]


@dataclass(frozen=True)
class FieldOption:
    """How one field is set. `option` empty: made from the field's name."""

    help: str
    option: str = ""
    metavar: str | None = None


HYPERPARAMETERS: Mapping[str, FieldOption] = {
    "num_virtual_tokens": FieldOption("Length of the soft prompt in virtual tokens.", "--virtual-tokens"),
    "kind": FieldOption("A soft prompt, or a prefix of keys and values: more to learn, larger, faster steps."),
    "reparameterisation": FieldOption("Network that is trained with the prompt and merged into it at the end."),
    "learning_rate": FieldOption("Peak learning rate."),
    "schedule": FieldOption("How the learning rate changes after the warm-up."),
    "warmup_steps": FieldOption("Steps of learning-rate warm-up."),
    "weight_decay": FieldOption("Decoupled weight decay."),
    "max_grad_norm": FieldOption("Gradient norm above which gradients are clipped; 0: no clipping."),
    "batch_size": FieldOption("Examples in each step."),
    "num_epochs": FieldOption("Passes over the data, in place of --steps.", "--epochs"),
    "num_steps": FieldOption("Optimizer steps.", "--steps"),
    "evaluation_interval_steps": FieldOption("Steps between evaluations.", "--evaluate-every"),
    "early_stop_patience": FieldOption(
        "Stop after this many evaluations without improvement; 0: never.", "--early-stop"
    ),
    "label_smoothing": FieldOption("Label smoothing, 0 to below 1; helps with noisy labels."),
    "balance_classes": FieldOption("Weight classes by inverse frequency."),
    "class_weights": FieldOption("Weight of a class in the loss; may be repeated.", "--class-weight", "LABEL=WEIGHT"),
    "metric": FieldOption("Metric that chooses the best checkpoint."),
    "seed": FieldOption("Seed for initialisation, shuffling and splitting."),
    "search": FieldOption("Compare several learning rates first."),
}
TEMPLATE: Mapping[str, FieldOption] = {
    "text": FieldOption("Text around each input, such as 'Review: {input}'.", "--template"),
    "format": FieldOption("Default: the base model's chat template if it has one, else text."),
    "system": FieldOption("System message for --format chat."),
    "system_override": FieldOption("A conversation's own system message may replace --system."),
    "arguments": FieldOption(
        "Argument of the model's chat template, such as enable_thinking=false; may be repeated.",
        "--template-argument",
        "NAME=JSON",
    ),
    "date": FieldOption("Today's date for the chat template. Default: the day of the job.", "--template-date", "DATE"),
}
_INIT: Mapping[str, FieldOption] = {
    "init": FieldOption("Initialisation of the soft prompt."),
    "init_text": FieldOption("Text for --init text."),
    "source": FieldOption("Start from the version NAME, NAME@ALIAS or NAME@7, or from a job.", "--from", "REF"),
}
_INIT_HINTS: Mapping[str, Any] = {"init": InitMethod | None, "init_text": str | None, "source": str | None}


def with_hyperparameters(panel: str, *, init: bool = True) -> Callable[[Command], Command]:
    """Replace a command's argument `hyperparameters` by options for its fields and, if `init`, for its start."""
    hints = {name: hint for name, hint in _hints(Hyperparameters).items() if name in HYPERPARAMETERS}
    table = {**(_INIT if init else {}), **HYPERPARAMETERS}

    def make(given: dict[str, Any]) -> Hyperparameters:
        start = _init(*(given.pop(name) for name in _INIT)) if init else None
        return Hyperparameters(init=start, **_values(given, hints))

    return _replacing("hyperparameters", table, {**_INIT_HINTS, **hints}, panel, make)


def with_template(panel: str) -> Callable[[Command], Command]:
    """Replace the argument `template` of a command by options for its fields. None if none is given."""
    hints = _hints(Template)

    def make(given: dict[str, Any]) -> Template | None:
        values = _values(given, hints)
        return Template(**values) if values else None

    return _replacing("template", TEMPLATE, hints, panel, make, prefix="template_")


def key_values(pairs: Sequence[str] | None, option: str) -> dict[str, str]:
    """From `KEY=VALUE` texts. Raises typer.BadParameter."""
    parts = [pair.partition("=") for pair in pairs or ()]
    if any(not separator or not key for key, separator, _ in parts):
        raise typer.BadParameter(f"{option} must look like KEY=VALUE")
    return {key: value for key, _, value in parts}


def _replacing(
    argument: str,
    table: Mapping[str, FieldOption],
    hints: Mapping[str, Any],
    panel: str,
    make: Callable[[dict[str, Any]], Any],
    prefix: str = "",
) -> Callable[[Command], Command]:
    """A decorator. `prefix` keeps names of fields apart from the command's own arguments."""
    options = {f"{prefix}{name}": _option(name, option, hints[name], panel) for name, option in table.items()}
    return replacing(
        argument, options, lambda given: make({name.removeprefix(prefix): value for name, value in given.items()})
    )


def replacing(
    argument: str,
    options: Mapping[str, Any],
    make: Callable[[dict[str, Any]], Any],
    defaults: Mapping[str, Any] = MappingProxyType({}),
) -> Callable[[Command], Command]:
    """A decorator that replaces an argument of a command by options and makes its value of them. `options`: the
    annotation of each; `defaults`: those other than None.
    """
    parameters = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=defaults.get(name), annotation=annotation)
        for name, annotation in options.items()
    ]

    def decorate(command: Command) -> Command:
        own = inspect.signature(command, eval_str=True).parameters.values()
        place = next(index for index, parameter in enumerate(own) if parameter.name == argument)
        kept = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own]
        all_parameters = [*kept[:place], *parameters, *kept[place + 1 :]]

        @wraps(command)
        def with_options(**given: Any) -> None:
            values = {name: given.pop(name) for name in options}
            command(**{argument: make(values)}, **given)

        with_options.__signature__ = inspect.Signature(all_parameters)  # type: ignore[attr-defined]
        with_options.__annotations__ = {parameter.name: parameter.annotation for parameter in all_parameters}
        return with_options

    return decorate


def _option(name: str, option: FieldOption, hint: Any, panel: str) -> Any:
    names = (option.option or f"--{name.replace('_', '-')}",)
    kinds = [part for part in typing.get_args(hint) or (hint,) if part is not type(None)]
    if typing.get_origin(hint) is Mapping:
        kinds = [list[str]]
    elif kinds == [bool] and name != "system_override":
        names = (f"{names[0]}/--no-{names[0].removeprefix('--')}",)
    made = typer.Option(
        *names,
        help=option.help,
        metavar=option.metavar,
        case_sensitive=not (isinstance(kinds[0], type) and issubclass(kinds[0], Enum)),
        show_default=False,
        rich_help_panel=panel,
    )
    return Annotated[kinds[0] | None, made]


def _hints(kind: type) -> dict[str, Any]:
    found = typing.get_type_hints(kind)
    return {item.name: found[item.name] for item in fields(kind)}


def _values(given: Mapping[str, Any], hints: Mapping[str, Any]) -> dict[str, Any]:
    """What was given, with mappings read from their texts."""
    values: dict[str, Any] = {}
    for name, value in given.items():
        if value is None or value == []:
            continue
        if isinstance(value, list):
            option = {**HYPERPARAMETERS, **TEMPLATE}[name].option
            is_number = typing.get_args(hints[name])[1] is float
            read = partial(_number, option=option) if is_number else _json
            value = {key: read(text) for key, text in key_values(value, option).items()}
        values[name] = value
    return values


def _number(text: str, option: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise typer.BadParameter(f"{option}: {text!r} is not a number") from None


def _json(text: str) -> Any:
    """The value of a JSON text; any other text is itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _init(method: InitMethod | None, text: str | None, source: str | None) -> Init | None:
    if source is not None:
        if text or method not in (None, InitMethod.FROM_PROMPT):
            raise typer.BadParameter("--from can't be combined with --init-text or another --init")
        return Init(InitMethod.FROM_PROMPT, source=source)
    if text and method not in (None, InitMethod.TEXT):
        raise typer.BadParameter("--init-text needs --init text")
    return Init(InitMethod.TEXT, text) if text else None if method is None else Init(method)
