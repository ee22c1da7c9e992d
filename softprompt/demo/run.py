"""The frame of the demo: start and stop of the services, Ctrl-C, and the check that no process is left."""

from __future__ import annotations

import importlib.util
import tempfile
import time
from pathlib import Path
from typing import TextIO

from rich.console import Console

from softprompt.demo.plan import DemoPlan
from softprompt.demo.promises import PromiseBroken, Promises
from softprompt.demo.story import Story
from softprompt.endpoints import INFERENCE_VARIABLE, TRAINER_VARIABLE
from softprompt.local.interrupts import Interrupted, run_interruptible
from softprompt.local.process import LogSink
from softprompt.local.services import LocalConfig, LocalServices


def run_demo(model: Path, output: Path, plan: DemoPlan, console: Console, *, stay: bool = False) -> None:
    """Run the demo. With `stay`, the services run on after its last step until Ctrl-C. Raises PromiseBroken if a claim
    did not hold, Interrupted after an earlier Ctrl-C, ServiceFailed if a service ends by itself.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise PromiseBroken("the picture needs matplotlib: pip install 'softprompt[plot]'")
    if not plan.train_file.is_file():
        raise PromiseBroken(f"the examples are not at {plan.examples_dir}: run the demo in a checkout of the project")
    output.mkdir(parents=True, exist_ok=True)
    promises = Promises(console)
    story = Story(console, plan, output, promises)
    staying = False

    async def run() -> None:
        nonlocal staying
        console.print("\n[bold]Start the trainer (with Ray), the inference service and the gateway[/]")
        async with services:
            took = time.monotonic() - story.began
            console.print(
                f"  trainer {services.trainer_endpoint}, inference {services.inference_endpoint}, gateway "
                f"{services.gateway_url}, after {took:.0f} s",
                markup=False,
            )
            await story.run(services)
            if stay and not promises.broken:
                staying = True
                console.print(f"\n{invitation(services, plan.prompt)}", markup=False, soft_wrap=True)
                raise await services.failure()
            console.print("\n[bold]Stop all three[/]")

    with (
        tempfile.TemporaryDirectory(prefix="softprompt-demo-") as data,
        (output / "services.log").open("w", encoding="utf-8") as log,
    ):
        config = LocalConfig(model=model, data_dir=Path(data), gateway_port=0, inference_dtype="float32")
        services = LocalServices(config, _sink(log))
        try:
            run_interruptible(run, services.kill_now)
        except Interrupted:
            if not staying:
                raise
        finally:
            left = services.alive()
            named = f": {', '.join(left)}" if left else ""
            promises.check(not left, f"everything is stopped, no process is left{named}")
    if promises.broken:
        raise PromiseBroken(f"{len(promises.broken)} of the demo's claims did not hold: " + "; ".join(promises.broken))
    console.print(f"\n{ending(time.monotonic() - story.began, output, stay)}", markup=False)


def invitation(services: LocalServices, prompt: str) -> str:
    """What to try while the services run on. The page's address is the last line."""
    return (
        "All three services run on until Ctrl-C. In another terminal:\n"
        f"  export {TRAINER_VARIABLE}={services.trainer_endpoint} {INFERENCE_VARIABLE}={services.inference_endpoint}\n"
        f"  softprompt chat {prompt}\n"
        "In a browser:\n"
        f"  {(services.gateway_url or '').removesuffix('/v1')}/"
    )


def ending(seconds: float, output: Path, stayed: bool) -> str:
    """The demo's last words."""
    more = "" if stayed else "\nTo try the page with these prompts: make demo STAY=1, or softprompt demo --stay"
    return f"Done in {seconds:.0f} s. The services' logs and the picture are in {output}/.{more}"


def _sink(log: TextIO) -> LogSink:
    def write(name: str, line: str) -> None:
        log.write(f"{name:<10} {line}\n")
        log.flush()

    return write
