"""The root command. Errors become a message and an exit code here and nowhere else."""

from __future__ import annotations

import os
import sys
from typing import Any

import typer

from shared.process.standard_streams import discard_stdout
from shared.process.surroundings import prepare_process
from shared.process.threads import limit_threads
from softprompt.cli import (
    chat,
    data_files,
    datasets,
    demo,
    distill,
    doctor,
    example,
    gateway,
    generate,
    info,
    init,
    jobs,
    models,
    prompts,
    retrain,
    router,
    security,
    store,
    tokens,
    tune,
    up,
    usage,
    webhooks,
)
from softprompt.cli.commands import Commands
from softprompt.cli.failures import EXIT_CODES_HELP, EXIT_FAILED, EXIT_INTERRUPTED, EXIT_INVALID, report
from softprompt.cli.help_text import set_help
from softprompt.cli.text_input import readable_argument
from softprompt.cli.usage_errors import is_usage_error, usage_failure

app = typer.Typer(
    cls=Commands,
    help="Tune soft prompts on a frozen language model, publish them, and stream answers from them.",
    epilog=EXIT_CODES_HELP,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
modules = (
    *(init, up, gateway, router, tune, retrain, distill, generate, chat),
    *(doctor, info, usage, demo, example),
)
for module in modules:
    module.register(app)
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
