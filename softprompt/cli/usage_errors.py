"""Errors of the command line's parser as one sentence in our words. The parser is typer's, or click in older versions
of typer: both have the same classes, which have no common base.
"""

from __future__ import annotations

import re
from typing import Any

from shared.close_names import did_you_mean, nearest
from shared.text.parsing_message import plain_message
from softprompt.cli.failures import EXIT_INVALID, Failure

_REWORDED = (
    (r"Got unexpected extra arguments?(?:\(s\))? \((.*)\)", r"there is no place for the argument \1"),
    (r"Option '(.*)' requires an argument", r"\1 needs a value"),
    (r"Missing command", "a command is missing"),
)
"""Sentences of the parser."""
_CHOICE = re.compile(r"(['\"])(?P<given>.*)\1 is not one of (?P<known>'.*')")


def is_usage_error(error: Exception) -> bool:
    """Whether the parser raised it."""
    return hasattr(error, "format_message") and hasattr(error, "exit_code")


def usage_failure(error: Any) -> Failure:
    """The error with our message, and the command that shows the help as its hint."""
    context, parameter = getattr(error, "ctx", None), getattr(error, "param", None)
    message = _sentence(error.message)
    if (option := getattr(error, "option_name", "")) and type(error).__name__ == "NoSuchOption":
        names = [name for item in context.command.params for name in item.opts] if context is not None else []
        known = {name.strip("-"): name for name in names if name.startswith("--")}  # dashes make all of them alike
        found = known.get(nearest(option.strip("-"), known))
        message = f"there is no option {option}" + (f"; do you mean {found}?" if found else "")
    elif type(error).__name__ == "MissingParameter" and parameter is not None:
        message = f"{_name(parameter)} is missing"
    elif parameter is not None:
        message = f"{_name(parameter)}{_given(error)}: {message}"
    hint = f"{context.command_path} --help" if context is not None else ""
    return Failure(message, EXIT_INVALID, hint)


def _name(parameter: Any) -> str:
    """`--steps`, or an argument's word in the usage."""
    if parameter.param_type_name == "option":
        return str(max(parameter.opts, key=len))
    return str(parameter.metavar or parameter.name).upper().rstrip(".")


def _given(error: Exception) -> str:
    """` 'x'`: the value that can't be used; empty if it is unknown or part of the message."""
    errors = getattr(error.__cause__, "errors", None)
    value = errors()[0]["input"] if errors is not None else None
    return f" {value!r}" if isinstance(value, str) and "is not one of" not in str(error) else ""


def _sentence(message: str) -> str:
    text = plain_message(message)
    for pattern, replacement in _REWORDED:
        text = re.sub(f"^{pattern}", replacement, text)
    if found := _CHOICE.fullmatch(text):
        known = re.findall(r"'(.*?)'", found["known"])
        text = f"{found['given']!r} is not one of {', '.join(known)}{did_you_mean(found['given'], known)}"
    return text
