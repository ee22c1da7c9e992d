"""`softprompt up`: both services on this machine, until Ctrl-C."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from softprompt.cli.failures import Failure
from softprompt.cli.models import pull_with_progress
from softprompt.cli.options import JsonOption, example
from softprompt.cli.output import print_json, show, stderr
from softprompt.cli.requirements import require
from softprompt.endpoints import DEFAULT_INFERENCE_PORT, DEFAULT_TRAINER_PORT, INFERENCE_VARIABLE, TRAINER_VARIABLE

if TYPE_CHECKING:
    from softprompt.local.services import LocalServices

DEFAULT_MODEL = "smollm2-135m-instruct"
_COLOURS = {"trainer": "cyan", "inference": "magenta"}


def register(app: typer.Typer) -> None:
    app.command(epilog=example("softprompt up --data ./softprompt-data"))(up)


def up(
    model: Annotated[str, typer.Option(help="Base model: a catalogued one (pulled if need be), a directory, or a hub id.")] = DEFAULT_MODEL,
    data: Annotated[Path, typer.Option(help="Where jobs, datasets and prompts are kept.")] = Path("softprompt-data"),
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    plaintext: Annotated[bool, typer.Option("--plaintext", help="Let other machines in without TLS, for --host.")] = False,
    trainer_port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = DEFAULT_TRAINER_PORT,
    inference_port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = DEFAULT_INFERENCE_PORT,
    grace: Annotated[float, typer.Option(min=0, metavar="SECONDS", help="How long running streams may finish at the end.")] = 10.0,
    quiet: Annotated[bool, typer.Option("--quiet", help="Do not forward the services' logs.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Start both services here; Ctrl-C stops them. Their logs go to stderr, the endpoints to stdout."""
    require("trainer", "inference")
    from softprompt.local.interrupts import Interrupted, run_interruptible
    from softprompt.local.process import ServiceFailed
    from softprompt.local.services import LocalConfig, LocalServices

    config = LocalConfig(pull_with_progress(model), data, host, trainer_port, inference_port, grace, plaintext)
    services = LocalServices(config, _silent if quiet else _forward)
    try:
        run_interruptible(lambda: _serve(services, as_json), services.kill_now)
    except Interrupted:
        stderr().print("stopped")
    except ServiceFailed as error:
        raise Failure(str(error)) from None


async def _serve(services: LocalServices, as_json: bool) -> None:
    stderr().print("starting the trainer and the inference service ...")
    async with services:
        if as_json:
            print_json({"trainer": services.trainer_endpoint, "inference": services.inference_endpoint})
        else:
            show(f"trainer    {services.trainer_endpoint}   {TRAINER_VARIABLE}={services.trainer_endpoint}")
            show(f"inference  {services.inference_endpoint}   {INFERENCE_VARIABLE}={services.inference_endpoint}")
        raise await services.failure()


def _forward(name: str, line: str) -> None:
    stderr().print(f"[{_COLOURS.get(name, 'dim')}]{name:<10}[/] ", end="")
    stderr().print(line, markup=False, soft_wrap=True)


def _silent(name: str, line: str) -> None:
    return None
