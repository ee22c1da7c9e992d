"""Options that many commands share, and the client for them."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from softprompt.cli.security import chosen_security
from softprompt.endpoints import INFERENCE_VARIABLE, TRAINER_VARIABLE

if TYPE_CHECKING:
    from softprompt.client.sync_client import Client

_address = partial(typer.Option, metavar="HOST:PORT")
port_option = partial(typer.Option, min=0, max=65535)
"""`typer.Option` for a port to listen on."""
TrainerOption = Annotated[
    str | None, _address("--trainer", envvar=TRAINER_VARIABLE, help="Address of the trainer service [127.0.0.1:50051].")
]
InferenceOption = Annotated[
    str | None,
    _address("--inference", envvar=INFERENCE_VARIABLE, help="Address of the inference service [127.0.0.1:50052]."),
]
FormerOutput = Annotated[Path | None, typer.Option("--output", hidden=True)]
"""The former name of `--out`."""
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, one object on each line.")]
ModelOption = Annotated[
    str, typer.Option(help="Base model: a catalogued name (downloaded if missing), a directory, or a hub id.")
]
PlaintextOption = Annotated[bool, typer.Option("--plaintext", help="Serve other machines without TLS (with --host).")]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
PromptArgument = Annotated[str, typer.Argument(metavar="PROMPT", help="Name of a prompt.")]
REFERENCE_HELP = "NAME (its default alias), NAME@ALIAS or NAME@7"
ReferenceArgument = Annotated[str, typer.Argument(metavar="REF", help=f"{REFERENCE_HELP}.")]
REQUEST_ID_HELP = "A unique key that you choose. Repeating it returns the same"


def options_under(panel: str) -> Callable[..., Any]:
    """`typer.Option` for options with this heading in `--help`."""
    return partial(typer.Option, rich_help_panel=panel)


_addresses: ContextVar[tuple[str | None, str | None] | None] = ContextVar("softprompt_addresses", default=None)


def open_client(trainer: str | None = None, inference: str | None = None, *, timeout_seconds: float = 30.0) -> Client:
    """A client with the security options and variables of this call. Commands without a service don't import gRPC."""
    from softprompt.client.sync_client import Client

    _addresses.set((trainer, inference))
    return Client(trainer, inference, timeout_seconds=timeout_seconds, security=chosen_security())


def last_addresses() -> tuple[str | None, str | None] | None:
    """Addresses of trainer and inference service that the last client was opened with; None before the first one."""
    return _addresses.get()


def example(text: str) -> str:
    """The last line of a command's help."""
    return f"Example:  {text}"
