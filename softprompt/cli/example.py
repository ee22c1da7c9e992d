"""`softprompt example`: train on one of the repository's examples and compare the prompt with the bare model."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from softprompt.cli.failures import EXIT_INTERRUPTED, Failure, require
from softprompt.cli.models import pull_with_progress
from softprompt.cli.options import JsonOption, ModelOption, example
from softprompt.cli.output import print_json, show, stderr, table
from softprompt.cli.security import chosen_security
from softprompt.cli.up import DEFAULT_MODEL
from softprompt.report.words import interval, number

if TYPE_CHECKING:
    from softprompt.demo.example import Example
    from softprompt.types.report import JobReport

app = typer.Typer()


@app.command("example", epilog=example("softprompt example review-sentiment"))
def run(
    name: Annotated[str, typer.Argument(help="Name of the example. Without one, all are listed.")] = "",
    model: ModelOption = "",
    data: Annotated[
        Path | None,
        typer.Option(help="Keep the job and the prompt in this directory, for `softprompt up --data` [nowhere]."),
    ] = None,
    trainer: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Train with this running service instead of starting services."),
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Also write the job's report: .html, .json or .csv.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Train on an example of this project, and compare the prompt on held-out examples with the bare model, with the
    instructed model and with few-shot. Takes 5 to 30 minutes without a GPU.
    """
    from softprompt.demo.example import find_example, known_examples, outcome
    from softprompt.report.data import check_target

    if not name:
        listed = table("EXAMPLE", "WHAT IT TEACHES")
        for known in known_examples():
            listed.add_row(known.name, known.title)
        show(listed)
        return
    chosen = find_example(name)
    if trainer is not None and (model or data is not None):
        raise typer.BadParameter("--model and --data are for services that this command starts, not for --trainer")
    if report is not None:
        check_target(report)  # before the training, not after it
    found = _report(chosen, model, data, trainer)
    if report is not None:
        found.save(report)
    result = outcome(chosen, found)
    if as_json:
        print_json(result)
    else:
        _show(result)


def _report(chosen: Example, model: str, data: Path | None, trainer: str | None) -> JobReport:
    """Train with the given service, or with services that are started for this example and stopped after it."""
    from softprompt.client.async_client import AsyncClient
    from softprompt.demo.example import train
    from softprompt.display.training import training_display
    from softprompt.local.interrupts import Interrupted, run_interruptible
    from softprompt.local.process import ServiceFailed
    from softprompt.local.services import LocalConfig, LocalServices

    reports: list[JobReport] = []

    async def follow(trainer: str | None, inference: str | None = None) -> None:
        async with AsyncClient(trainer, inference, security=chosen_security()) as client:
            with training_display(stderr(), chosen.name) as show_event:
                reports.append(await train(client, chosen, show_event))

    with ExitStack() as stack:
        services: LocalServices | None = None
        if trainer is None:
            require("trainer", "inference")
            folder = data or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="softprompt-example-")))
            config = LocalConfig(pull_with_progress(model or DEFAULT_MODEL), folder)
            services = LocalServices(config, lambda name, line: None)

        async def work() -> None:
            if services is None:
                await follow(trainer)
                return
            stderr().print("starting the services ...")
            async with services:
                await follow(services.trainer_endpoint, services.inference_endpoint)

        try:
            run_interruptible(work, lambda: services.kill_now() if services is not None else None)
        except Interrupted:
            ended = "the services are stopped" if services is not None else "the job continues"
            raise Failure(f"interrupted; {ended}", EXIT_INTERRUPTED) from None
        except ServiceFailed as error:
            raise Failure(str(error)) from None
    return reports[0]


def _show(result: dict[str, Any]) -> None:
    """The answers to a few held-out examples, and the table."""
    for answer in result["answers"]:
        for title, text in answer.items():
            show(f"{title + ':':<13}{text}")
        show("")
    tuned = result["tuned"]
    show(f"{result['metric']} on {result['num_held_out']} held-out examples, with 95 % intervals")
    rows = table("MODEL", result["metric"].upper(), "TUNED IS BETTER BY", "")
    for rival in result["rivals"]:
        better = f"{number(rival['difference'], 3)}{_interval(rival)}"
        rows.add_row(rival["model"], number(rival["value"], 3), better, "beaten" if rival["beaten"] else "not beaten")
    rows.add_row("tuned", f"{number(tuned['value'], 3)}{_interval(tuned)}", "", "")
    show(rows)


def _interval(found: dict[str, Any]) -> str:
    text = interval(found["low"], found["high"])
    return f" ({text})" if text else ""
