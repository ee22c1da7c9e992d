"""`softprompt router`: GenerationService for several base models at one address."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from softprompt.cli.options import example
from softprompt.cli.requirements import require

app = typer.Typer()

_PREFIX = "SOFTPROMPT_ROUTER_"


@app.command(epilog=example("softprompt router --store ./softprompt-data/prompts --port 50053"))
def router(
    store: Annotated[
        str | None, typer.Option(metavar="URL", help="Prompt store of the replicas: a directory, s3://BUCKET/PREFIX.")
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on [127.0.0.1].")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port; 0 chooses a free one [50053].")] = None,
    plaintext: Annotated[
        bool, typer.Option("--plaintext", help="Serve other machines without TLS (with --host).")
    ] = False,
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
    from shared.process.service import run_configured
    from softprompt.cli.security import chosen_security
    from softprompt.router.server import serve
    from softprompt.router.settings import RouterSettings

    chosen = {
        "STORE_URL": store,
        "HOST": host,
        "PORT": port,
        "PLAINTEXT": "true" if plaintext else None,
        "MODELS_FILE": models_file,
        "DEFAULT_BASE_MODEL": default_base_model,
    }
    os.environ.update({_PREFIX + name: str(value) for name, value in chosen.items() if value is not None})
    if code := run_configured(RouterSettings, partial(serve, security=chosen_security())):
        raise typer.Exit(code)
