"""`softprompt chat`: a conversation with a prompt, on a terminal or over pipes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

import typer

from shared.close_names import did_you_mean
from shared.values.sampling import Sampling
from softprompt.cli.error_report import report
from softprompt.cli.failures import EXIT_INVALID, Failure
from softprompt.cli.generate import RoutingOption
from softprompt.cli.options import REFERENCE_HELP, InferenceOption, example, open_client
from softprompt.cli.output import stderr, write
from softprompt.cli.sampling import with_sampling_options

if TYPE_CHECKING:
    from softprompt.client.chat import Chat

app = typer.Typer()

_COMMANDS = {"/reset": "forget the conversation", "/exit": "end (as Ctrl-D does)", "/help": "show these commands"}


@app.command(epilog=example("softprompt chat support-tone --temperature 0.2"))
@with_sampling_options
def chat(
    prompt: Annotated[str, typer.Argument(metavar="NAME", help=f"{REFERENCE_HELP}. Default: the bare model.")] = "",
    *,
    sampling: Sampling,
    system: Annotated[str, typer.Option(help="System message, if the prompt allows one.")] = "",
    routing_key: RoutingOption = "",
    inference: InferenceOption = None,
) -> None:
    """Talk with a prompt; the conversation is kept. Ctrl-C ends an answer, Ctrl-D the chat.

    With piped input, every line is a message, and the answers go to standard output.
    """
    is_terminal = sys.stdin.isatty()
    with open_client(inference=inference) as client:
        talk = client.chat(prompt, system=system, sampling=sampling, routing_key=routing_key)
        if is_terminal:
            stderr().print(f"{prompt or 'bare model'}: {_help()}", style="dim", markup=False)
        for text in _messages(is_terminal):
            if text.startswith("/") and not text.startswith("//"):
                if text == "/exit":
                    return
                _run_command(talk, text, is_terminal)
                continue
            try:
                _answer(talk, text.removeprefix("/") if text.startswith("//") else text)
            except KeyboardInterrupt:
                if not is_terminal:
                    raise
                stderr().print("(stopped)", style="dim")
            except Exception as error:
                if not is_terminal:
                    raise
                report(error)


def _messages(is_terminal: bool) -> Iterator[str]:
    """The user's lines without blank ones. Ctrl-C at the prompt of a terminal discards the line."""
    if is_terminal:
        with suppress(ImportError):
            import readline  # noqa: F401 - input() then has a history and can be edited
    while True:
        try:
            line = input("> ") if is_terminal else sys.stdin.readline()
        except EOFError:
            sys.stdout.write("\n")
            return
        except KeyboardInterrupt:
            if not is_terminal:
                raise
            stderr().print("\nCtrl-D or /exit ends the chat", style="dim")
            continue
        except UnicodeError:
            reason = f"standard input is not text in {sys.stdin.encoding}"
            raise Failure(reason, EXIT_INVALID, "set its encoding, for example PYTHONIOENCODING=cp1252") from None
        if not is_terminal and not line:
            return
        if text := line.strip():
            yield text


def _run_command(talk: Chat, command: str, is_terminal: bool) -> None:
    if command == "/reset":
        talk.reset()
        if is_terminal:
            stderr().print("the conversation is forgotten", style="dim")
    elif command == "/help":
        stderr().print(_help(), markup=False)
    else:
        reason = f"{command} is not a command{did_you_mean(command, _COMMANDS)}; // begins a text with a slash"
        if not is_terminal:
            raise Failure(reason, EXIT_INVALID)
        stderr().print(reason, markup=False)


def _answer(talk: Chat, text: str) -> None:
    try:
        for delta in talk.stream(text):
            write(delta.text)
    finally:
        sys.stdout.write("\n")
        sys.stdout.flush()


def _help() -> str:
    return "; ".join(f"{name} {text}" for name, text in _COMMANDS.items())
