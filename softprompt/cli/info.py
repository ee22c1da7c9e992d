"""`softprompt info`: versions, models, limits and load of both services."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import typer

from shared.text.counted import counted
from softprompt.cli.error_report import report
from softprompt.cli.options import InferenceOption, JsonOption, TrainerOption, example, open_client
from softprompt.cli.output import print_json, show

if TYPE_CHECKING:
    from shared.values.base_model import BaseModelInfo
    from shared.values.generation import ModelInfo
    from shared.values.service import ServiceInfo

app = typer.Typer()

T = TypeVar("T")


@app.command(epilog=example("softprompt info --json"))
def info(as_json: JsonOption = False, trainer: TrainerOption = None, inference: InferenceOption = None) -> None:
    """Show models, limits and load of both services. Fails after showing one service if the other can't be reached or
    refuses you.
    """
    from softprompt.errors import SoftPromptError

    failures: list[SoftPromptError] = []

    def ask(service: str, endpoint: str, question: Callable[[], T]) -> T | None:
        try:
            return question()
        except SoftPromptError as error:
            error.args = (f"{service} {endpoint}: {error}",)
            failures.append(error)
            return None

    with open_client(trainer, inference) as client:
        trains = ask("trainer", client.trainer, client.service_info)
        serves = ask("inference", client.inference, client.model_info)
        if as_json:
            print_json({"service": "trainer", "endpoint": client.trainer, "info": trains})
            print_json({"service": "inference", "endpoint": client.inference, "info": serves})
        else:
            if trains is not None:
                _show_trainer(client.trainer, trains)
            if serves is not None:
                _show_inference(client.inference, serves)
    for failure in failures[:-1]:
        report(failure)
    if failures:
        raise failures[-1]


def _show_trainer(endpoint: str, found: ServiceInfo) -> None:
    show(f"trainer    {endpoint}  softprompt {found.software_version}")
    for model in found.base_models:
        show(f"  model    {_model(model)}")
    for missing in found.unavailable_base_models:
        show(f"  model    {missing.id}: not available, {missing.reason}")
    running, workers = counted(found.running_jobs, "job"), counted(found.num_workers, "worker")
    show(f"  load     {running} running, {found.queued_jobs} queued, {workers}")
    if found.limits is not None:
        show(f"  limits   {found.limits.max_virtual_tokens} virtual tokens, {found.limits.max_examples} examples")


def _show_inference(endpoint: str, found: ModelInfo) -> None:
    show(f"inference  {endpoint}  softprompt {found.software_version}")
    if found.base_model is not None:
        show(f"  model    {_model(found.base_model)}, {found.dtype} on {found.device}")
    if found.limits is not None:
        show(f"  limits   {found.limits.max_positions} positions, {found.limits.max_new_tokens} new tokens")


def _model(model: BaseModelInfo) -> str:
    return f"{model.id}  {model.architecture}  {model.fingerprint[:19]}…"
