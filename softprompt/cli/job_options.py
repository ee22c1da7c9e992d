"""How a command names a job (name, id, or the id's beginning or end), and options of commands that create one."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from softprompt.cli.failures import EXIT_NOT_FOUND, Failure
from softprompt.cli.options import REQUEST_ID_HELP, options_under

if TYPE_CHECKING:
    from shared.values.hyperparameters import Hyperparameters
    from softprompt.client.sync_client import Client

TRAINING, RESULT = "Training (the service chooses what is left out)", "Result"
in_training, in_result = options_under(TRAINING), options_under(RESULT)

BaseModelOption = Annotated[str, in_training(help="Id of a base model of the trainer.")]
PriorityOption = Annotated[int, in_training(help="Jobs with a higher priority run first; -100 to 100.")]
MaxRuntimeOption = Annotated[float | None, in_training(metavar="SECONDS", help="Longest time on workers.")]
AnnotationOption = Annotated[
    list[str] | None,
    in_result(metavar="KEY=VALUE", help="Kept with the job, and found by `jobs list --label`; may be repeated."),
]
AliasOption = Annotated[str, in_result(help="Alias to move to the new version; - for none.")]
FollowOption = Annotated[
    bool, typer.Option(help="Show the progress until the job ends. Ctrl-C stops following; the job continues.")
]
RequestIdOption = Annotated[str, typer.Option(help=f"{REQUEST_ID_HELP} job.")]
PREFIX = "tuningJobs/"
JOB_HELP = "Name or id of the job, or 4 characters or more of the id's beginning or end."
JobArgument = Annotated[str, typer.Argument(metavar="JOB", help=JOB_HELP)]
_ID_CHARS, _MIN_CHARS, _SHOWN = 26, 4, 8


def job_name(client: Client, text: str) -> str:
    """`tuningJobs/<id>` of the job that `text` names. Text that names no job is taken as an id, so that the service
    says that it does not exist. Raises Failure if several jobs are meant.
    """
    id = text.removeprefix(PREFIX)
    if not _MIN_CHARS <= len(id) < _ID_CHARS:
        return PREFIX + id
    known = [job.name.removeprefix(PREFIX) for job in client.list_jobs()]
    found = [one for one in known if one.startswith(id) or one.endswith(id)]
    if len(found) > 1 and id not in found:
        others = f" and {len(found) - _SHOWN} others" if len(found) > _SHOWN else ""
        raise Failure(f"{id!r} is part of several ids: {', '.join(found[:_SHOWN])}{others}", EXIT_NOT_FOUND)
    return PREFIX + (found[0] if len(found) == 1 else id)


def with_source(client: Client, hyperparameters: Hyperparameters) -> Hyperparameters:
    """The same hyperparameters; if training starts from a job's prompt, with the job's full name."""
    init = hyperparameters.init
    if init is None or not init.source.startswith(PREFIX):
        return hyperparameters
    return replace(hyperparameters, init=replace(init, source=job_name(client, init.source)))
