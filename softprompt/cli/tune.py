"""`softprompt tune`: train a prompt on a file of examples and publish it."""

from __future__ import annotations

from typing import Annotated

import typer

from softprompt.cli.data import (
    PANEL,
    DropExtraOption,
    EncodingOption,
    InputOption,
    LabelOption,
    LabelsOption,
    MessagesOption,
    OutputOption,
    label_set,
    read_examples,
)
from softprompt.cli.following import conclude
from softprompt.cli.options import JsonOption, TrainerOption, example, open_client
from softprompt.cli.output import stderr
from softprompt.cli.sampling import parse_sampling
from softprompt.data.prepare import VALIDATION_DATASET
from softprompt.display.transfer import upload_display
from softprompt.types.common import Sampling, Template, TemplateFormat
from softprompt.types.data import Data
from softprompt.types.spec import (
    Hyperparameters,
    Init,
    InitMethod,
    Metric,
    PublishGate,
    PublishPolicy,
    TaskKind,
    TooLong,
    TuningSpec,
)

DATA, TRAINING, RESULT = PANEL, "Training (the service chooses what is left out)", "Result"


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command(
        epilog=example("softprompt tune train.jsonl --prompt support-tone --validation heldout.jsonl --steps 200")
    )(tune)


def tune(
    file: Annotated[
        str,
        typer.Argument(help="CSV, TSV, XLSX, Parquet, JSON or JSON lines (may be gzipped), a dataset name or a URI."),
    ],
    prompt: Annotated[str, typer.Option(help="Name of the prompt. The job publishes its next version.")],
    validation: Annotated[
        str | None, typer.Option(help="Held-out examples: a file, a dataset name or a URI.", rich_help_panel=DATA)
    ] = None,
    validation_fraction: Annotated[
        float | None, typer.Option(help="Fraction of the examples to hold out, 0 to 1.", rich_help_panel=DATA)
    ] = None,
    template: Annotated[
        str, typer.Option(help="Text around each input, such as 'Review: {input}'.", rich_help_panel=DATA)
    ] = "",
    format: Annotated[
        TemplateFormat | None,
        typer.Option(
            case_sensitive=False,
            help="Default: the base model's chat template if it has one, else text.",
            rich_help_panel=DATA,
        ),
    ] = None,
    system: Annotated[str, typer.Option(help="System message for --format chat.", rich_help_panel=DATA)] = "",
    input: InputOption = "",
    output: OutputOption = "",
    label: LabelOption = "",
    messages: MessagesOption = "",
    drop_extra: DropExtraOption = False,
    encoding: EncodingOption = "",
    labels: LabelsOption = None,
    task: Annotated[
        TaskKind | None,
        typer.Option(case_sensitive=False, help="Kind of task, if the data does not show it.", rich_help_panel=DATA),
    ] = None,
    too_long: Annotated[
        TooLong | None,
        typer.Option(
            case_sensitive=False,
            help="For examples that are too long: refuse the job, truncate or drop them.",
            rich_help_panel=DATA,
        ),
    ] = None,
    base_model: Annotated[str, typer.Option(help="Id of a base model of the trainer.", rich_help_panel=TRAINING)] = "",
    source: Annotated[
        str | None,
        typer.Option(
            "--from", metavar="REF", help="Start from the version NAME, NAME@ALIAS or NAME@7.", rich_help_panel=TRAINING
        ),
    ] = None,
    init: Annotated[
        InitMethod | None,
        typer.Option(case_sensitive=False, help="Initialisation of the soft prompt.", rich_help_panel=TRAINING),
    ] = None,
    init_text: Annotated[str, typer.Option(help="Text for --init text.", rich_help_panel=TRAINING)] = "",
    virtual_tokens: Annotated[
        int | None, typer.Option(help="Length of the soft prompt in virtual tokens.", rich_help_panel=TRAINING)
    ] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak learning rate.", rich_help_panel=TRAINING)] = None,
    batch_size: Annotated[int | None, typer.Option(help="Examples in each step.", rich_help_panel=TRAINING)] = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps.", rich_help_panel=TRAINING)] = None,
    epochs: Annotated[
        float | None, typer.Option(help="Passes over the data, in place of --steps.", rich_help_panel=TRAINING)
    ] = None,
    warmup_steps: Annotated[
        int | None, typer.Option(help="Steps of learning-rate warm-up.", rich_help_panel=TRAINING)
    ] = None,
    weight_decay: Annotated[
        float | None, typer.Option(help="Decoupled weight decay.", rich_help_panel=TRAINING)
    ] = None,
    evaluate_every: Annotated[
        int | None, typer.Option(help="Steps between evaluations.", rich_help_panel=TRAINING)
    ] = None,
    early_stop: Annotated[
        int | None,
        typer.Option(help="Stop after this many evaluations without improvement; 0: never.", rich_help_panel=TRAINING),
    ] = None,
    metric: Annotated[
        Metric | None,
        typer.Option(case_sensitive=False, help="Metric that chooses the best checkpoint.", rich_help_panel=TRAINING),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed for initialisation, shuffling and splitting.", rich_help_panel=TRAINING)
    ] = None,
    search: Annotated[
        bool | None, typer.Option("--search", help="Compare several learning rates first.", rich_help_panel=TRAINING)
    ] = None,
    priority: Annotated[
        int, typer.Option(help="Jobs with a higher priority run first; -100 to 100.", rich_help_panel=TRAINING)
    ] = 0,
    max_runtime: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Longest time on workers.", rich_help_panel=TRAINING)
    ] = None,
    alias: Annotated[
        str, typer.Option(help="Alias to move to the new version; - for none.", rich_help_panel=RESULT)
    ] = "default",
    beat_bare_model: Annotated[
        bool,
        typer.Option(
            "--beat-bare-model", help="Publish only if the prompt beats the bare model.", rich_help_panel=RESULT
        ),
    ] = False,
    beat_current: Annotated[
        bool,
        typer.Option(
            "--beat-current", help="Publish only if the prompt beats the alias's version.", rich_help_panel=RESULT
        ),
    ] = False,
    minimum_metric: Annotated[
        float | None,
        typer.Option(help="Publish only if the metric is at least this; a loss: at most.", rich_help_panel=RESULT),
    ] = None,
    sampling: Annotated[
        list[str] | None,
        typer.Option(
            "--sampling",
            metavar="NAME=VALUE",
            help="Default of the prompt's answers, such as top_p=0.9; repeatable.",
            rich_help_panel=RESULT,
        ),
    ] = None,
    wait_until_served: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            help="Keep the job running until all live replicas serve the version.",
            rich_help_panel=RESULT,
        ),
    ] = None,
    follow: Annotated[
        bool, typer.Option(help="Show the progress until the job ends. Ctrl-C stops following; the job continues.")
    ] = True,
    request_id: Annotated[str, typer.Option(help="A unique key of yours. Repeating it returns the same job.")] = "",
    as_json: JsonOption = False,
    trainer: TrainerOption = None,
) -> None:
    """Tune a soft prompt on examples, publish it, and wait until the first live replica serves it."""
    gate = (
        PublishGate(beat_bare_model, beat_current, minimum_metric)
        if beat_bare_model or beat_current or minimum_metric is not None
        else None
    )
    how, allowed = Data("", input, output, label, messages, drop_extra, encoding), label_set(labels)
    spec = TuningSpec(
        prompt=prompt,
        dataset=read_examples(file, how, allowed),
        validation_dataset=None if validation is None else read_examples(validation, how, allowed, VALIDATION_DATASET),
        validation_fraction=validation_fraction,
        base_model=base_model,
        template=Template(template, format, system) if template or format or system else None,
        task=task,
        labels=allowed,
        hyperparameters=Hyperparameters(
            num_virtual_tokens=virtual_tokens,
            init=_init(init, init_text, source),
            learning_rate=learning_rate,
            warmup_steps=warmup_steps,
            weight_decay=weight_decay,
            batch_size=batch_size,
            num_epochs=epochs,
            num_steps=steps,
            evaluation_interval_steps=evaluate_every,
            early_stop_patience=early_stop,
            metric=metric,
            seed=seed,
            search=search,
        ),
        publish=PublishPolicy(alias, gate, wait_until_served),
        sampling_defaults=parse_sampling(sampling or ()) or Sampling(),
        priority=priority,
        max_runtime_seconds=max_runtime,
        too_long=too_long,
    )
    with open_client(trainer) as client:
        with upload_display(stderr(), "creating the job") as on_upload:
            job = client.create_job(spec, request_id=request_id, on_upload=on_upload)
        conclude(client, job, follow=follow, as_json=as_json)


def _init(method: InitMethod | None, text: str, source: str | None) -> Init | None:
    if source is not None:
        if text or method not in (None, InitMethod.FROM_PROMPT):
            raise typer.BadParameter("--from can't be combined with --init-text or another --init")
        return Init(InitMethod.FROM_PROMPT, source=source)
    if text and method not in (None, InitMethod.TEXT):
        raise typer.BadParameter("--init-text needs --init text")
    return Init(InitMethod.TEXT, text) if text else None if method is None else Init(method)
