"""`softprompt doctor`: look at this machine, both services and the gateway, and say how to fix what is wrong."""

from __future__ import annotations

import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from softprompt.cli.failures import EXIT_FAILED
from softprompt.cli.options import InferenceOption, JsonOption, TrainerOption, example, open_client
from softprompt.cli.output import print_json, stdout
from softprompt.endpoints import DEFAULT_GATEWAY_PORT, GATEWAY_VARIABLE, INFERENCE_VARIABLE, TRAINER_VARIABLE
from softprompt.extras import missing_packages
from softprompt.local import machine_checks as machine
from softprompt.local.machine_checks import Finding

if TYPE_CHECKING:
    from shared.values.generation import ModelInfo
    from shared.values.service import ServiceInfo

app = typer.Typer()

T = TypeVar("T")
_SERVICE_SECONDS = 5.0
_GATEWAY = f"http://127.0.0.1:{DEFAULT_GATEWAY_PORT}"
MAX_SKEW_SECONDS = 5.0
"""Tokens, leases and deadlines compare times of several machines."""
STORE_VARIABLES = ("SOFTPROMPT_INFERENCE_STORE_URL", "SOFTPROMPT_TRAINER_STORE_URL")


@app.command(epilog=example("softprompt doctor --json"))
def doctor(
    data: Annotated[Path, typer.Option(help="Directory of `softprompt up`.")] = Path("softprompt-data"),
    as_json: JsonOption = False,
    trainer: TrainerOption = None,
    inference: InferenceOption = None,
    gateway: Annotated[
        str, typer.Option(metavar="URL", envvar=GATEWAY_VARIABLE, help="Address of the gateway.")
    ] = _GATEWAY,
) -> None:
    """Check this machine, both services and the gateway. Prints a line for each check, with a fix for each problem.

    The exit code is 1 if there is a problem.
    """
    num_problems = 0
    for found in _findings(data, trainer, inference, gateway):
        num_problems += found.is_problem
        if as_json:
            print_json(found)
            continue
        mark, plain = ("[red]✗[/]", "!!") if found.is_problem else ("·", "--") if found.fix else ("[green]✓[/]", "ok")
        if stdout().options.ascii_only:
            mark = plain
        stdout().print(f"{mark} ", end="")
        fix = f"  (to fix it: {found.fix})" if found.fix else ""
        stdout().print(f"{found.subject:<18}{found.text}{fix}", markup=False, soft_wrap=True)
    if num_problems:
        raise typer.Exit(EXIT_FAILED)


def _findings(data: Path, trainer: str | None, inference: str | None, gateway: str) -> Iterator[Finding]:
    from softprompt.cli.up import DEFAULT_MODEL
    from softprompt.model_catalogue import models_dir

    yield from machine.installation()
    here = machine.has_services()
    if here:
        yield from machine.settings()
        yield from machine.memory()
        yield from machine.disk(data, models_dir())
        yield from machine.compiler()
        yield from machine.model(DEFAULT_MODEL, models_dir())
        url = next((os.environ[name] for name in STORE_VARIABLES if os.environ.get(name)), str(data / "prompts"))
        yield from machine.store(url)
    yield from _services(trainer, inference, here)
    yield gateway_finding(gateway)


def _services(trainer: str | None, inference: str | None, here: bool) -> Iterator[Finding]:
    with open_client(trainer, inference, timeout_seconds=_SERVICE_SECONDS) as client:
        info, tuning = _asked("trainer", client.trainer, client.service_info, TRAINER_VARIABLE, here)
        model, serving = _asked("inference", client.inference, client.model_info, INFERENCE_VARIABLE, here)
        yield from tuning
        yield from serving
    yield from _agreement(info, model)


def _asked(
    name: str, address: str, question: Callable[[], T], variable: str, here: bool
) -> tuple[T | None, list[Finding]]:
    """The answer, and what it says about the service: reachable, version, clock. The port if it could start `here`."""
    from softprompt.errors import DeadlineExceeded, InvalidInput, SoftPromptError, Unavailable

    before = time.time()
    try:
        found = question()
    except SoftPromptError as error:
        ports = list(machine.port(name, address)) if here else []
        match error:
            case Unavailable():
                fix = f"softprompt up starts it here; {variable} and --{name} set another address"
            case DeadlineExceeded():
                fix = "its log shows whether it is still starting; if not, restart it"
            case InvalidInput():
                fix, ports = f"--{name} HOST:PORT of the right service; ss -ltnp names the program at each port", []
            case _:
                fix = "check the address, TLS and the token"
        return None, [Finding(name, str(error).removeprefix(f"{name}: "), True, fix), *ports]
    trip, middle = time.time() - before, (before + time.time()) / 2
    theirs, ours = getattr(found, "software_version", ""), version("softprompt")
    fix = f"pip install softprompt=={theirs}, or upgrade the service" if theirs != ours else ""
    findings = [Finding(name, f"{address}, softprompt {theirs}, answered in {1000 * trip:.0f} ms", False, fix)]
    now: datetime | None = getattr(found, "current_time", None)
    if now is not None and now > datetime.fromtimestamp(0, UTC) + timedelta(days=1):
        skew = now.timestamp() - middle
        if abs(skew) - trip / 2 > MAX_SKEW_SECONDS:
            fix = "synchronise both clocks (chrony, systemd-timesyncd)"
            findings.append(Finding("clock", f"the {name}'s is {skew:+.0f} s from this machine's", True, fix))
    return found, findings


def _agreement(info: ServiceInfo | None, model: ModelInfo | None) -> Iterator[Finding]:
    """Whether prompts of the trainer can be served by the replica."""
    if info is None or model is None or model.base_model is None:
        return
    for missing in info.unavailable_base_models:
        fix = f"softprompt models pull {missing.id}, on the trainer's machine"
        yield Finding("base model", f"the trainer can't use {missing.id}: {missing.reason}", True, fix)
    if model.base_model.fingerprint in {item.fingerprint for item in info.base_models}:
        yield Finding("base model", f"{model.base_model.id}, the same for trainer and replica")
    else:
        fix = "start both with one copy of the model: prompts belong to the weights that they were tuned on"
        names = ", ".join(item.id for item in info.base_models) or "none"
        yield Finding("base model", f"the replica has {model.base_model.id}, the trainer {names}", True, fix)


_SECONDS = 5.0
_MAX_BYTES = 1 << 22
_PORTS = "ss -ltnp names the program; --gateway-port of softprompt up and --gateway here choose another address"


def gateway_finding(url: str) -> Finding:
    """Whether the gateway is ready and has this version. It may be absent: only the page and HTTP need it."""
    url = url.rstrip("/").removesuffix("/v1")
    if not url.startswith(("http://", "https://")):
        fix = f"--gateway http://HOST:PORT, or {GATEWAY_VARIABLE}"
        return Finding("gateway", f"{url[:200]!r} does not begin with http:// or https://", True, fix)
    try:
        title, theirs = _described(url)
    except (OSError, http.client.HTTPException, LookupError, TypeError, ValueError) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        if not isinstance(reason, ConnectionRefusedError):
            return Finding("gateway", f"no gateway answers at {url}: {str(reason)[:200]!r}", True, _PORTS)
        if missing_packages("gateway"):
            return Finding("gateway", "not installed", fix="pip install 'softprompt[gateway]' for the page and HTTP")
        return Finding("gateway", f"none at {url}", fix="softprompt up or softprompt gateway starts it")
    if title != "softprompt gateway":
        return Finding("gateway", f"another program answers at {url}", True, _PORTS)
    if not _is_ready(url):
        fix = "start the inference service; the gateway's log has the address that it tries"
        return Finding("gateway", f"{url} waits for the inference service", True, fix)
    fix = f"pip install softprompt=={theirs}, or upgrade the gateway" if theirs != version("softprompt") else ""
    return Finding("gateway", f"{url}, softprompt {theirs}, ready", fix=fix)


def _opened(url: str) -> Any:
    """The response, without a proxy of the environment."""
    return urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=_SECONDS)


def _described(url: str) -> tuple[str, str]:
    """Title and version of the HTTP API. Raises OSError, HTTPException, LookupError, TypeError or ValueError."""
    with _opened(f"{url}/openapi.json") as response:
        info = json.loads(response.read(_MAX_BYTES))["info"]
    return str(info["title"]), str(info["version"])


def _is_ready(url: str) -> bool:
    with suppress(OSError, http.client.HTTPException), _opened(f"{url}/readyz"):
        return True
    return False
