"""The root command. Errors become a message and an exit code here and nowhere else."""

from __future__ import annotations

import os
import re
import sys
from typing import Any

import typer

from shared.close_names import did_you_mean, nearest
from shared.process.standard_streams import discard_stdout
from shared.process.surroundings import prepare_process
from shared.process.threads import limit_threads
from shared.text.parsing_message import plain_message
from softprompt.cli import (
    chat,
    data_files,
    datasets,
    demo,
    distill,
    doctor,
    example,
    generate,
    info,
    init,
    jobs,
    models,
    prompts,
    retrain,
    security,
    servers,
    store,
    tokens,
    tune,
    up,
    usage,
    webhooks,
)
from softprompt.cli.commands import Commands
from softprompt.cli.error_report import report
from softprompt.cli.failures import EXIT_CODES_HELP, EXIT_FAILED, EXIT_INTERRUPTED, EXIT_INVALID, Failure
from softprompt.cli.help_text import set_help
from softprompt.cli.text_input import readable_argument

app = typer.Typer(
    cls=Commands,
    help="Tune soft prompts on a frozen language model, publish them, and stream answers from them.",
    epilog=EXIT_CODES_HELP,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for module in (init, up, servers, tune, retrain, distill, generate, chat, doctor, info, usage, demo, example):
    app.add_typer(module.app)
_GROUPS = (
    (jobs.app, "jobs", "List, follow and cancel tuning jobs."),
    (datasets.app, "datasets", "Datasets that the trainer stores for you."),
    (data_files.app, "data", "Check, preview and convert files of examples."),
    (prompts.app, "prompts", "Published prompts, their versions and aliases."),
    (models.app, "models", "Base models on this machine."),
    (store.app, "store", "Copy and check prompt stores."),
    (tokens.app, "tokens", "Bearer tokens for a service's callers file."),
    (webhooks.app, "webhooks", "Webhooks of the trainer and their deliveries, for operators."),
)
for group, name, text in _GROUPS:
    app.add_typer(group, name=name, help=text, cls=Commands)
app.callback()(security.options)


_REWORDED = (
    (r"Got unexpected extra arguments?(?:\(s\))? \((.*)\)", r"there is no place for the argument \1"),
    (r"Option '(.*)' requires an argument", r"\1 needs a value"),
    (r"Missing command", "a command is missing"),
)
"""Sentences of the parser."""
_CHOICE = re.compile(r"(['\"])(?P<given>.*)\1 is not one of (?P<known>'.*')")


def is_usage_error(error: Exception) -> bool:
    """Whether typer's parser, or click's with older releases, raised it: the classes have no common base."""
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


def command_line() -> Any:
    """The whole command line."""
    command = typer.main.get_command(app)
    set_help(command)
    return command


def main() -> None:
    """Entry point of the `softprompt` command."""
    prepare_process()
    limit_threads()
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # gRPC repeats its own messages in the error
    sys.argv[1:] = map(readable_argument, sys.argv[1:])
    try:
        try:
            code = command_line()(standalone_mode=False)
        except Exception as error:
            if type(error).__name__ != "NoArgsIsHelpError":
                raise
            sys.stdout.write(f"{error}\n")  # the help
            code = EXIT_INVALID
        finally:
            sys.stdout.flush()  # reports a full disk now and not while the interpreter ends
        sys.exit(code if isinstance(code, int) else 0)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:  # the reader of the output has ended, as `head` does
        discard_stdout()
        sys.exit(EXIT_FAILED)
    except Exception as error:
        if is_usage_error(error):
            sys.exit(report(usage_failure(error)))
        discard_stdout()
        if os.environ.get("SOFTPROMPT_DEBUG"):
            raise
        sys.exit(report(error))
