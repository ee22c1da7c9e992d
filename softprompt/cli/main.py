"""The root command, and the one place where an error becomes a message and an exit code."""

from __future__ import annotations

import os
import sys

import typer

from shared.process.standard_streams import discard_stdout
from shared.process.surroundings import prepare_process
from shared.process.threads import limit_threads
from softprompt.cli import datasets, demo, generate, info, jobs, models, prompts, security, tokens, tune, up
from softprompt.cli.failures import EXIT_CODES_HELP, EXIT_FAILED, EXIT_INTERRUPTED, report
from softprompt.cli.text_input import readable_argument

app = typer.Typer(
    help="Tune soft prompts on a frozen language model, publish them, and stream answers from them.",
    epilog=EXIT_CODES_HELP,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for module in (demo, up, tune, generate, info):
    module.register(app)
app.add_typer(jobs.app, name="jobs", help="Look at tuning jobs and steer them.")
app.add_typer(datasets.app, name="datasets", help="Stored datasets of your tenant.")
app.add_typer(prompts.app, name="prompts", help="Published prompts, their versions and aliases.")
app.add_typer(models.app, name="models", help="Base models on this machine.")
app.add_typer(tokens.app, name="tokens", help="Tokens for a service's callers file.")
app.callback()(security.options)


def main() -> None:
    """Entry point of the `softprompt` command."""
    prepare_process()
    limit_threads()
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what gRPC's core has to say is in the error, too
    sys.argv[1:] = map(readable_argument, sys.argv[1:])
    try:
        try:
            app()
        finally:
            sys.stdout.flush()  # a full disk is found here, not when the interpreter has ended
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:  # the reader of the output has left, as `head` does
        discard_stdout()
        sys.exit(EXIT_FAILED)
    except Exception as error:
        discard_stdout()
        if os.environ.get("SOFTPROMPT_DEBUG"):
            raise
        sys.exit(report(error))
