"""`softprompt gateway` and `softprompt router`: the servers in front of the services, until SIGTERM or Ctrl-C."""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from softprompt.cli.failures import require
from softprompt.cli.options import InferenceOption, PlaintextOption, TrainerOption, example, port_option

if TYPE_CHECKING:
    from shared.config import ListenerSettings

app = typer.Typer()

HostOption = Annotated[str | None, typer.Option(help="Address to listen on [127.0.0.1].")]


@app.command(epilog=example("softprompt gateway --port 8000, then OPENAI_BASE_URL=http://127.0.0.1:8000/v1"))
def gateway(
    host: HostOption = None,
    port: Annotated[int | None, port_option(help="Port; 0 chooses a free one [8000].")] = None,
    plaintext: PlaintextOption = False,
    trainer: TrainerOption = None,
    inference: InferenceOption = None,
) -> None:
    """Serve OpenAI's HTTP API over both services until SIGTERM or Ctrl-C.

    The options and the variables SOFTPROMPT_GATEWAY_* (docs/gateway.md lists them) set it up; an option wins.
    """
    require("gateway")
    from softprompt.gateway.server import serve
    from softprompt.gateway.settings import GatewaySettings

    _run(GatewaySettings, serve, host, port, plaintext, TRAINER=trainer, INFERENCE=inference)


@app.command(epilog=example("softprompt router --store ./softprompt-data/prompts --port 50053"))
def router(
    store: Annotated[
        str | None, typer.Option(metavar="URL", help="Prompt store of the replicas: a directory, s3://BUCKET/PREFIX.")
    ] = None,
    host: HostOption = None,
    port: Annotated[int | None, port_option(help="Port; 0 chooses a free one [50053].")] = None,
    plaintext: PlaintextOption = False,
    models_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Models file: calls wait for models that are scaled to zero.")
    ] = None,
    default_base_model: Annotated[
        str | None, typer.Option(help="Base model of requests that name neither a prompt nor a base model.")
    ] = None,
) -> None:
    """Pass calls on to the replicas that serve their prompt or base model, until SIGTERM or Ctrl-C.

    The options and the variables SOFTPROMPT_ROUTER_* (docs/settings.md lists them) set it up; an option wins.
    """
    require("service")
    from softprompt.router.server import serve
    from softprompt.router.settings import RouterSettings

    own = {"STORE_URL": store, "MODELS_FILE": models_file, "DEFAULT_BASE_MODEL": default_base_model}
    _run(RouterSettings, serve, host, port, plaintext, **own)


def _run(
    settings: type[ListenerSettings],
    serve: Callable[..., Coroutine[Any, Any, None]],
    host: str | None,
    port: int | None,
    plaintext: bool,
    **own: str | Path | None,
) -> None:
    """Serve with the options as environment variables; `own`: those of this server."""
    from shared.process.service import run_configured
    from softprompt.cli.security import chosen_security

    given = {"HOST": host, "PORT": port, "PLAINTEXT": "true" if plaintext else None, **own}
    prefix = settings.model_config["env_prefix"]
    os.environ.update({prefix + name: str(value) for name, value in given.items() if value is not None})
    if code := run_configured(settings, partial(serve, security=chosen_security())):
        raise typer.Exit(code)
