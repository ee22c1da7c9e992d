"""`softprompt jobs clone` and `softprompt jobs continue`: create a job from an existing one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from shared.values.hyperparameters import Hyperparameters
from shared.values.spec import PublishPolicy
from softprompt.cli.field_options import Command, with_hyperparameters
from softprompt.cli.following import conclude
from softprompt.cli.job_options import FollowOption, JobArgument, job_name, with_source
from softprompt.cli.options import JsonOption, TrainerOption, example, open_client
from softprompt.cli.output import stderr
from softprompt.display.transfer import upload_display

if TYPE_CHECKING:
    from softprompt.client.sync_client import Client

app = typer.Typer()
TRAINING = "Training (what is left out: as in the job)"
Data = Annotated[
    str | None, typer.Option(help="Training examples instead of the job's: a file, a dataset name or a URI.")
]
Validation = Annotated[
    str | None, typer.Option(help="Held-out examples instead of the job's: a file, a dataset name or a URI.")
]
PromptName = Annotated[str | None, typer.Option(help="Name of the prompt to publish, instead of the job's.")]
Alias = Annotated[str | None, typer.Option(help="Alias to move to the new version; - for none.")]
Priority = Annotated[int | None, typer.Option(help="Jobs with a higher priority run first; -100 to 100.")]


def _copying(method: str, help: str, *, init: bool = True) -> Command:
    """A command that calls this method of the client. `init`: whether it has the options of an initialisation."""

    @with_hyperparameters(TRAINING, init=init)
    def copy(
        job: JobArgument,
        data: Data = None,
        validation: Validation = None,
        prompt: PromptName = None,
        alias: Alias = None,
        *,
        hyperparameters: Hyperparameters,
        priority: Priority = None,
        follow: FollowOption = True,
        as_json: JsonOption = False,
        trainer: TrainerOption = None,
    ) -> None:
        with open_client(trainer) as client:
            name, settings = job_name(client, job), with_source(client, hyperparameters)
            changes = _changes(client, name, data, validation, prompt, alias, priority)
            with upload_display(stderr(), "creating the job") as on_upload:
                create = getattr(client, method)
                created = create(name, on_upload=on_upload, hyperparameters=settings, **changes)
            conclude(client, created, follow=follow, as_json=as_json)

    copy.__doc__ = help
    return copy


def _changes(
    client: Client,
    name: str,
    data: str | None,
    validation: str | None,
    prompt: str | None,
    alias: str | None,
    priority: int | None,
) -> dict[str, Any]:
    """Fields of the spec that replace those of the job."""
    from dataclasses import replace

    from softprompt.cli.data import read_examples
    from softprompt.types.data import VALIDATION_DATASET, Data

    changes: dict[str, Any] = {}
    if data is not None:
        changes["dataset"] = read_examples(data, Data(""), ())
    if validation is not None:
        changes["validation_dataset"] = read_examples(validation, Data(""), (), VALIDATION_DATASET)
    if prompt is not None:
        changes["prompt"] = prompt
    if priority is not None:
        changes["priority"] = priority
    if alias is not None:
        spec = client.get_job(name).spec
        changes["publish"] = replace((spec.publish if spec is not None else None) or PublishPolicy(), alias=alias)
    return changes


clone = _copying("clone_job", "Create a job with the same spec, except for the options given here.")
app.command("clone", epilog=example("softprompt jobs clone 8q1r4s7t --learning-rate 0.1 --prompt tone-b"))(clone)
continue_ = _copying(
    "continue_job",
    "Create a job that starts from another job's version, or from its best prompt if it failed or was cancelled.",
    init=False,
)
app.command("continue", epilog=example("softprompt jobs continue 8q1r4s7t --data more.jsonl"))(continue_)
