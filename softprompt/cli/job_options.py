"""Options of the commands that create a job: `tune` and `distill`."""

from __future__ import annotations

from typing import Annotated

import typer

from softprompt.cli.options import REQUEST_ID_HELP, options_under

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
