"""`softprompt up`: run both services and the gateway on this machine until Ctrl-C."""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from filelock import FileLock, Timeout

from shared.rpc.ports import check_port
from softprompt.cli.failures import EXIT_INVALID, Failure, require
from softprompt.cli.models import pull_with_progress
from softprompt.cli.options import JsonOption, ModelOption, PlaintextOption, example, port_option
from softprompt.cli.output import print_json, show, stderr
from softprompt.endpoints import (
    DEFAULT_GATEWAY_PORT,
    DEFAULT_INFERENCE_PORT,
    DEFAULT_TRAINER_PORT,
    GATEWAY_VARIABLE,
    INFERENCE_VARIABLE,
    TRAINER_VARIABLE,
)

if TYPE_CHECKING:
    from softprompt.local.services import LocalServices

app = typer.Typer()

_LEAST_BYTES = 1 << 20
DEFAULT_MODEL = "smollm2-135m-instruct"
_VARIABLES = {"trainer": TRAINER_VARIABLE, "inference": INFERENCE_VARIABLE, "gateway": "OPENAI_BASE_URL"}
_COLOURS = {"trainer": "cyan", "inference": "magenta", "gateway": "green"}
_DEFAULTS = {
    TRAINER_VARIABLE: f"127.0.0.1:{DEFAULT_TRAINER_PORT}",
    INFERENCE_VARIABLE: f"127.0.0.1:{DEFAULT_INFERENCE_PORT}",
    GATEWAY_VARIABLE: f"http://127.0.0.1:{DEFAULT_GATEWAY_PORT}",
}
PROMPT, FILE = "my-prompt", "examples.jsonl"


def after_start(endpoints: Mapping[str, str]) -> list[str]:
    """Three commands for a second terminal. `endpoints` by variable; those that are not the default are exported."""
    changed = {name: address for name, address in endpoints.items() if address != _DEFAULTS.get(name)}
    exports = [f"export {name}={shlex.quote(address)}" for name, address in changed.items()]
    steps = (
        (f"softprompt init {FILE}", "a file of examples to change"),
        (f"softprompt tune {FILE} --prompt {PROMPT}", "train and publish"),
        (f"softprompt chat {PROMPT}", "ask it"),
    )
    return [*exports, *(f"{command:<58}# {about}" for command, about in steps)]


@app.command(epilog=example("softprompt up --data ./softprompt-data"))
def up(
    model: ModelOption = DEFAULT_MODEL,
    data: Annotated[Path, typer.Option(help="Directory for jobs, datasets and prompts.")] = Path("softprompt-data"),
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    plaintext: PlaintextOption = False,
    trainer_port: Annotated[int, port_option(help="Port; 0 chooses a free one.")] = DEFAULT_TRAINER_PORT,
    inference_port: Annotated[int, port_option(help="Port; 0 chooses a free one.")] = DEFAULT_INFERENCE_PORT,
    gateway_port: Annotated[
        int, port_option(help="Port of the HTTP API; 0 chooses a free one.")
    ] = DEFAULT_GATEWAY_PORT,
    no_gateway: Annotated[bool, typer.Option("--no-gateway", help="Do not serve the HTTP API.")] = False,
    grace: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="Time for running streams to finish at the end.")
    ] = 10.0,
    quiet: Annotated[bool, typer.Option("--quiet", help="Do not print the services' logs.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Run both services and the gateway on this machine; Ctrl-C stops them. Prints the addresses on stdout and the logs
    on stderr.
    """
    require("trainer", "inference", *(() if no_gateway else ("gateway",)))
    from softprompt.local.interrupts import Interrupted, run_interruptible
    from softprompt.local.process import ServiceFailed
    from softprompt.local.services import LocalConfig, LocalServices

    if ":" in host and not host.startswith("["):  # an IPv6 address, which has brackets where a port follows
        host = f"[{host}]"
    http_port = None if no_gateway else gateway_port
    _check_ports(host, {"trainer": trainer_port, "inference": inference_port, "gateway": http_port})
    _check_data(data)
    with _lock(data):  # before a model is loaded
        path = pull_with_progress(model)
        config = LocalConfig(path, data, host, trainer_port, inference_port, grace, plaintext, http_port)
        services = LocalServices(config, (lambda name, line: None) if quiet else _forward)
        try:
            run_interruptible(lambda: _serve(services, as_json), services.kill_now)
        except Interrupted:
            stderr().print("stopped")
        except ServiceFailed as error:
            raise Failure(str(error)) from None


def _check_ports(host: str, ports: Mapping[str, int | None]) -> None:
    """Raises Failure if a process could not listen, before a model is downloaded or loaded."""
    taken: dict[int, str] = {}
    for name, port in ports.items():
        if port is None:
            continue
        if port and (other := taken.setdefault(port, name)) != name:
            advice = f"change --{other}-port or --{name}-port"
            raise Failure(f"two services can't listen on port {port}: {advice}", EXIT_INVALID)
        try:
            check_port(host, port, f"--{name}-port")
        except OSError as error:
            raise Failure(str(error), EXIT_INVALID) from None


def _check_data(data: Path) -> None:
    """Raises Failure if the services could not write there, before they start."""
    try:
        data.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=data) as file:
            file.write(bytes(_LEAST_BYTES))  # a full disk still takes an empty file
    except OSError as error:
        reason = "it is not a directory" if data.exists() and not data.is_dir() else error.strerror or str(error)
        raise Failure(f"--data: can't write to {str(data)!r}: {reason}", EXIT_INVALID) from None


def _lock(data: Path) -> AbstractContextManager[Any]:
    """The directory is this command's until the lock is left. Raises Failure if another one has it."""
    try:
        return FileLock(data / "up.lock").acquire(timeout=0)
    except Timeout:
        reason = f"--data: another softprompt up uses {str(data)!r}"
        raise Failure(reason, EXIT_INVALID, "choose another directory") from None


async def _serve(services: LocalServices, as_json: bool) -> None:
    stderr().print("starting the services ...")
    async with services:
        addresses = {"trainer": services.trainer_endpoint, "inference": services.inference_endpoint}
        if services.gateway_url is not None:
            addresses["gateway"] = services.gateway_url
        if as_json:
            print_json(addresses)
        else:
            for name, address in addresses.items():
                show(f"{name:<10} {address}   {_VARIABLES[name]}={address}")
            endpoints = {TRAINER_VARIABLE: services.trainer_endpoint, INFERENCE_VARIABLE: services.inference_endpoint}
            if services.gateway_url is not None:
                page = services.gateway_url.removesuffix("/v1")
                show(f"{'page':<10} {page}/   open it in a browser")
                endpoints[GATEWAY_VARIABLE] = page
            show("next, in another terminal:")
            for line in after_start(endpoints):
                show(f"  {line}")
        raise await services.failure()


def _forward(name: str, line: str) -> None:
    stderr().print(f"[{_COLOURS.get(name, 'dim')}]{name:<10}[/] ", end="")
    stderr().print(line, markup=False, soft_wrap=True)
