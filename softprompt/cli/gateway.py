"""`softprompt gateway`: OpenAI's HTTP API over both services."""

from __future__ import annotations

import os
from functools import partial
from typing import Annotated

import typer

from softprompt.cli.options import InferenceOption, TrainerOption, example
from softprompt.cli.requirements import require

app = typer.Typer()

_PREFIX = "SOFTPROMPT_GATEWAY_"


@app.command(epilog=example("softprompt gateway --port 8000, then OPENAI_BASE_URL=http://127.0.0.1:8000/v1"))
def gateway(
    host: Annotated[str | None, typer.Option(help="Address to listen on [127.0.0.1].")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port; 0 chooses a free one [8000].")] = None,
    plaintext: Annotated[
        bool, typer.Option("--plaintext", help="Serve other machines without TLS (with --host).")
    ] = False,
    trainer: TrainerOption = None,
    inference: InferenceOption = None,
) -> None:
    """Serve OpenAI's HTTP API over both services until SIGTERM or Ctrl-C.

    The options and the variables SOFTPROMPT_GATEWAY_* (docs/gateway.md lists them) set it up; an option wins.
    """
    require("gateway")
    from shared.process.service import run_configured
    from softprompt.cli.security import chosen_security
    from softprompt.gateway.server import serve
    from softprompt.gateway.settings import GatewaySettings

    chosen = {
        "HOST": host,
        "PORT": port,
        "PLAINTEXT": "true" if plaintext else None,
        "TRAINER": trainer,
        "INFERENCE": inference,
    }
    os.environ.update({_PREFIX + name: str(value) for name, value in chosen.items() if value is not None})
    if code := run_configured(GatewaySettings, partial(serve, security=chosen_security())):
        raise typer.Exit(code)
