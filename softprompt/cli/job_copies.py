"""`softprompt jobs clone` and `softprompt jobs continue`: create a job from an existing one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from softprompt.cli.following import conclude
from softprompt.cli.options import JsonOption, TrainerOption, example, job_name, open_client
from softprompt.cli.output import stderr
from softprompt.display.transfer import upload_display
from softprompt.types.spec import Hyperparameters, PublishPolicy

if TYPE_CHECKING:
    from softprompt.client.sync_client import Client

JobArgument = Annotated[str, typer.Argument(metavar="JOB", help="Name of the job: tuningJobs/<id>, or the id alone.")]
Data = Annotated[
    str | None, typer.Option(help="Training examples instead of the job's: a file, a dataset name or a URI.")
]
Validation = Annotated[
    str | None, typer.Option(help="Held-out examples instead of the job's: a file, a dataset name or a URI.")
]
PromptName = Annotated[str | None, typer.Option(help="Name of the prompt to publish, instead of the job's.")]
Alias = Annotated[str | None, typer.Option(help="Alias to move to the new version; - for none.")]
LearningRate = Annotated[float | None, typer.Option(help="Peak learning rate.")]
BatchSize = Annotated[int | None, typer.Option(help="Examples in each step.")]
Steps = Annotated[int | None, typer.Option(help="Optimizer steps.")]
Epochs = Annotated[float | None, typer.Option(help="Passes over the data, in place of --steps.")]
VirtualTokens = Annotated[int | None, typer.Option(help="Length of the soft prompt in virtual tokens.")]
Seed = Annotated[int | None, typer.Option(help="Seed for initialisation, shuffling and splitting.")]
Priority = Annotated[int | None, typer.Option(help="Jobs with a higher priority run first; -100 to 100.")]
Follow = Annotated[
    bool, typer.Option(help="Show the progress until the job ends. Ctrl-C stops following; the job continues.")
]


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command(epilog=example("softprompt jobs clone 01jd3v8e --learning-rate 0.1 --prompt tone-b"))(clone)
    app.command("continue", epilog=example("softprompt jobs continue 01jd3v8e --data more.jsonl"))(continue_)


def clone(
    job: JobArgument,
    data: Data = None,
    validation: Validation = None,
    prompt: PromptName = None,
    alias: Alias = None,
    virtual_tokens: VirtualTokens = None,
    learning_rate: LearningRate = None,
    batch_size: BatchSize = None,
    steps: Steps = None,
    epochs: Epochs = None,
    seed: Seed = None,
    priority: Priority = None,
    follow: Follow = True,
    as_json: JsonOption = False,
    trainer: TrainerOption = None,
) -> None:
    """Create a job with the same spec, except for the options given here."""
    hyperparameters = Hyperparameters(
        num_virtual_tokens=virtual_tokens,
        learning_rate=learning_rate,
        batch_size=batch_size,
        num_steps=steps,
        num_epochs=epochs,
        seed=seed,
    )
    with open_client(trainer) as client:
        changes = _changes(client, job_name(job), data, validation, prompt, alias, priority)
        with upload_display(stderr(), "creating the job") as on_upload:
            created = client.clone_job(job_name(job), on_upload=on_upload, hyperparameters=hyperparameters, **changes)
        conclude(client, created, follow=follow, as_json=as_json)


def continue_(
    job: JobArgument,
    data: Data = None,
    validation: Validation = None,
    prompt: PromptName = None,
    alias: Alias = None,
    learning_rate: LearningRate = None,
    batch_size: BatchSize = None,
    steps: Steps = None,
    epochs: Epochs = None,
    priority: Priority = None,
    follow: Follow = True,
    as_json: JsonOption = False,
    trainer: TrainerOption = None,
) -> None:
    """Create a job that starts from another job's version, or from its best prompt if it failed or was cancelled."""
    hyperparameters = Hyperparameters(
        learning_rate=learning_rate, batch_size=batch_size, num_steps=steps, num_epochs=epochs
    )
    with open_client(trainer) as client:
        changes = _changes(client, job_name(job), data, validation, prompt, alias, priority)
        with upload_display(stderr(), "creating the job") as on_upload:
            created = client.continue_job(
                job_name(job), on_upload=on_upload, hyperparameters=hyperparameters, **changes
            )
        conclude(client, created, follow=follow, as_json=as_json)


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
    from softprompt.data.prepare import VALIDATION_DATASET
    from softprompt.types.data import Data

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
