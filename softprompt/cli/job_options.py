"""Options of the commands that create a job: `tune` and `distill`."""

from __future__ import annotations

from typing import Annotated

import typer

TRAINING, RESULT = "Training (the service chooses what is left out)", "Result"

BaseModelOption = Annotated[str, typer.Option(help="Id of a base model of the trainer.", rich_help_panel=TRAINING)]
PriorityOption = Annotated[
    int, typer.Option(help="Jobs with a higher priority run first; -100 to 100.", rich_help_panel=TRAINING)
]
MaxRuntimeOption = Annotated[
    float | None, typer.Option(metavar="SECONDS", help="Longest time on workers.", rich_help_panel=TRAINING)
]
AnnotationOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY=VALUE",
        help="Kept with the job, and found by `jobs list --label`; may be repeated.",
        rich_help_panel=RESULT,
    ),
]
AliasOption = Annotated[str, typer.Option(help="Alias to move to the new version; - for none.", rich_help_panel=RESULT)]
FollowOption = Annotated[
    bool, typer.Option(help="Show the progress until the job ends. Ctrl-C stops following; the job continues.")
]
RequestIdOption = Annotated[str, typer.Option(help="A unique key of yours. Repeating it returns the same job.")]
