"""`softprompt demo`: train, serve and replace a prompt on this machine, in a few minutes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from softprompt.cli.failures import EXIT_INTERRUPTED, Failure, require
from softprompt.cli.models import pull_with_progress
from softprompt.cli.options import FormerOutput, ModelOption, example
from softprompt.cli.output import stderr, stdout

app = typer.Typer()


@app.command(epilog=example("softprompt demo --out ./demo-output"))
def demo(
    out: Annotated[Path, typer.Option(help="Directory for the loss curve and the services' logs.")] = Path(
        "demo-output"
    ),
    model: ModelOption = "",
    stay: Annotated[
        bool, typer.Option("--stay", help="Keep the services and the page running at the end, until Ctrl-C.")
    ] = False,
    output: FormerOutput = None,
) -> None:
    """Train a prompt, serve it, and replace it with a better version under load. Takes a few minutes. Ctrl-C stops
    everything.
    """
    require("trainer", "inference", "gateway", "plot")
    from softprompt.demo.plan import DemoPlan
    from softprompt.demo.promises import PromiseBroken
    from softprompt.demo.run import run_demo
    from softprompt.local.interrupts import Interrupted
    from softprompt.local.process import ServiceFailed

    plan, out = DemoPlan(), output or out
    path = pull_with_progress(model or plan.model)
    try:
        run_demo(path, out, plan, stdout(), stay=stay)
    except Interrupted:
        stderr().print("interrupted; all services are stopped")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    except (PromiseBroken, ServiceFailed) as error:
        raise Failure(str(error), hint=f"the services' logs are in {out}/services.log") from None
