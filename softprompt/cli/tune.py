"""`softprompt tune`: train a prompt on a file of examples and publish it."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import typer

from shared.values.enums import TaskKind, TooLong
from shared.values.hyperparameters import Hyperparameters
from shared.values.sampling import Sampling
from shared.values.spec import PublishGate, PublishPolicy, TuningSpec
from shared.values.template import Template
from softprompt.cli.data import PANEL, LabelsOption, in_data, label_set, read_examples, with_data_options
from softprompt.cli.field_options import key_values, with_hyperparameters, with_template
from softprompt.cli.following import submit
from softprompt.cli.job_options import (
    TRAINING,
    AliasOption,
    AnnotationOption,
    BaseModelOption,
    FollowOption,
    MaxRuntimeOption,
    PriorityOption,
    RequestIdOption,
    in_result,
    in_training,
)
from softprompt.cli.options import JsonOption, TrainerOption, example
from softprompt.cli.sampling import parse_sampling
from softprompt.types.data import VALIDATION_DATASET, Data

app = typer.Typer()


@app.command(epilog=example("softprompt tune train.jsonl --prompt support-tone --validation heldout.jsonl --steps 200"))
@with_template(PANEL)
@with_data_options
@with_hyperparameters(TRAINING)
def tune(
    file: Annotated[
        str,
        typer.Argument(help="CSV, TSV, XLSX, Parquet, JSON or JSON lines (may be gzipped), a dataset name or a URI."),
    ],
    *,
    prompt: Annotated[str, typer.Option(help="Name of the prompt. The job publishes its next version.")],
    validation: Annotated[str | None, in_data(help="Held-out examples: a file, a dataset name or a URI.")] = None,
    validation_fraction: Annotated[float | None, in_data(help="Fraction of the examples to hold out, 0 to 1.")] = None,
    template: Template | None,
    how: Data,
    labels: LabelsOption = None,
    task: Annotated[
        TaskKind | None, in_data(case_sensitive=False, help="Kind of task, if the data does not show it.")
    ] = None,
    too_long: Annotated[
        TooLong | None,
        in_data(case_sensitive=False, help="For examples that are too long: refuse the job, truncate or drop them."),
    ] = None,
    base_model: BaseModelOption = "",
    hyperparameters: Hyperparameters,
    priority: PriorityOption = 0,
    max_runtime: MaxRuntimeOption = None,
    deadline: Annotated[
        str | None,
        in_training(
            metavar="TIME",
            help="The job fails if its training has not ended by then: 2030-01-31T18:00, with or without a time zone.",
        ),
    ] = None,
    annotation: AnnotationOption = None,
    alias: AliasOption = "default",
    beat_bare_model: Annotated[
        bool, in_result("--beat-bare-model", help="Publish only if the prompt beats the bare model.")
    ] = False,
    beat_current: Annotated[
        bool, in_result("--beat-current", help="Publish only if the prompt beats the alias's version.")
    ] = False,
    minimum_metric: Annotated[
        float | None, in_result(help="Publish only if the metric is at least this; a loss: at most.")
    ] = None,
    sampling: Annotated[
        list[str] | None,
        in_result(metavar="NAME=VALUE", help="Default of the prompt's answers, such as top_p=0.9; may be repeated."),
    ] = None,
    wait_until_served: Annotated[
        float | None,
        in_result(metavar="SECONDS", help="Keep the job running until all live replicas serve the version."),
    ] = None,
    follow: FollowOption = True,
    validate_only: Annotated[
        bool,
        typer.Option(
            "--validate-only", help="Store the examples and check the job; show what would be trained, and create none."
        ),
    ] = False,
    request_id: RequestIdOption = "",
    as_json: JsonOption = False,
    trainer: TrainerOption = None,
) -> None:
    """Tune a soft prompt on examples, publish it, and wait until the first live replica serves it."""
    gate = PublishGate(beat_bare_model, beat_current, minimum_metric)
    allowed = label_set(labels)
    spec = TuningSpec(
        prompt=prompt,
        dataset=read_examples(file, how, allowed),
        validation_dataset=None if validation is None else read_examples(validation, how, allowed, VALIDATION_DATASET),
        validation_fraction=validation_fraction,
        base_model=base_model,
        template=template,
        task=task,
        labels=allowed,
        hyperparameters=hyperparameters,
        publish=PublishPolicy(alias, gate if gate.has_conditions else None, wait_until_served),
        sampling_defaults=parse_sampling(sampling or ()) or Sampling(),
        priority=priority,
        max_runtime_seconds=max_runtime,
        too_long=too_long,
        annotations=key_values(annotation, "--annotation"),
        deadline=_time(deadline),
    )
    submit(spec, trainer, validate_only=validate_only, request_id=request_id, follow=follow, as_json=as_json)


def _time(text: str | None) -> datetime | None:
    """A time in ISO 8601; without a time zone, it is this machine's."""
    if text is None:
        return None
    try:
        return datetime.fromisoformat(text).astimezone()
    except (ValueError, OverflowError):
        raise typer.BadParameter(f"--deadline must be a time such as 2030-01-31T18:00, not {text!r}") from None
