"""`softprompt tune`: from a file of examples to a published version."""

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
    repetition,
)
from softprompt.cli.options import JsonOption, TrainerOption, example, open_client
from softprompt.cli.output import print_json, show, stderr
from softprompt.data.prepare import VALIDATION_DATASET
from softprompt.types.common import Template, TemplateFormat
from softprompt.types.data import Data
from softprompt.types.tuning import Hyperparameters, Init, InitMethod, Metric, PublishGate, PublishPolicy, TaskKind, TuningSpec

DATA, TRAINING, RESULT = PANEL, "Training (what is left out is chosen by the service)", "Result"


def register(app: typer.Typer) -> None:
    app.command(epilog=example("softprompt tune train.jsonl --prompt support-tone --validation heldout.jsonl --steps 200"))(tune)


def tune(
    file: Annotated[
        str, typer.Argument(help="CSV, TSV, XLSX, Parquet, JSON or JSON lines, also with gzip; a dataset name or a URI. See docs/data.md.")
    ],
    prompt: Annotated[str, typer.Option(help="Name of the prompt; its next version is published.")],
    validation: Annotated[str | None, typer.Option(help="Held-out examples, likewise.", rich_help_panel=DATA)] = None,
    validation_fraction: Annotated[float | None, typer.Option(help="Share of the examples that is held out.", rich_help_panel=DATA)] = None,
    template: Annotated[str, typer.Option(help="Text with {input} in it, as in 'Review: {input}'.", rich_help_panel=DATA)] = "",
    format: Annotated[
        TemplateFormat | None, typer.Option(case_sensitive=False, help="Plain text or chat template.", rich_help_panel=DATA)
    ] = None,
    system: Annotated[str, typer.Option(help="System message, with --format chat.", rich_help_panel=DATA)] = "",
    input: InputOption = "",
    output: OutputOption = "",
    label: LabelOption = "",
    messages: MessagesOption = "",
    drop_extra: DropExtraOption = False,
    encoding: EncodingOption = "",
    labels: LabelsOption = None,
    task: Annotated[TaskKind | None, typer.Option(case_sensitive=False, help="If not read off the data.", rich_help_panel=DATA)] = None,
    base_model: Annotated[str, typer.Option(help="Id of one of the trainer's base models.", rich_help_panel=TRAINING)] = "",
    source: Annotated[
        str | None, typer.Option("--from", metavar="REF", help="Train on from NAME, NAME@ALIAS or NAME@7.", rich_help_panel=TRAINING)
    ] = None,
    init: Annotated[InitMethod | None, typer.Option(case_sensitive=False, help="Where it starts.", rich_help_panel=TRAINING)] = None,
    init_text: Annotated[str, typer.Option(help="Text that it starts as.", rich_help_panel=TRAINING)] = "",
    virtual_tokens: Annotated[int | None, typer.Option(help="Length of the soft prompt.", rich_help_panel=TRAINING)] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak learning rate.", rich_help_panel=TRAINING)] = None,
    batch_size: Annotated[int | None, typer.Option(help="Examples a step.", rich_help_panel=TRAINING)] = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps.", rich_help_panel=TRAINING)] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the data, instead of steps.", rich_help_panel=TRAINING)] = None,
    warmup_steps: Annotated[int | None, typer.Option(help="Steps of warm-up.", rich_help_panel=TRAINING)] = None,
    weight_decay: Annotated[float | None, typer.Option(help="Decoupled weight decay.", rich_help_panel=TRAINING)] = None,
    evaluate_every: Annotated[int | None, typer.Option(help="Steps between evaluations.", rich_help_panel=TRAINING)] = None,
    early_stop: Annotated[
        int | None, typer.Option(help="Evaluations without improvement before stopping; 0 = never.", rich_help_panel=TRAINING)
    ] = None,
    metric: Annotated[
        Metric | None, typer.Option(case_sensitive=False, help="What decides which checkpoint is best.", rich_help_panel=TRAINING)
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of init, shuffling and splitting.", rich_help_panel=TRAINING)] = None,
    search: Annotated[bool | None, typer.Option("--search", help="Try several learning rates first.", rich_help_panel=TRAINING)] = None,
    priority: Annotated[int, typer.Option(help="Higher goes first, -100 to 100.", rich_help_panel=TRAINING)] = 0,
    max_runtime: Annotated[float | None, typer.Option(metavar="SECONDS", help="Longest time on workers.", rich_help_panel=TRAINING)] = None,
    alias: Annotated[str, typer.Option(help="Alias that is moved to the new version; - for none.", rich_help_panel=RESULT)] = "default",
    beat_bare_model: Annotated[
        bool, typer.Option("--beat-bare-model", help="Publish only if better than the bare model.", rich_help_panel=RESULT)
    ] = False,
    beat_current: Annotated[
        bool, typer.Option("--beat-current", help="Publish only if better than what the alias names.", rich_help_panel=RESULT)
    ] = False,
    minimum_metric: Annotated[float | None, typer.Option(help="Publish only from this metric on.", rich_help_panel=RESULT)] = None,
    wait_until_served: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS", help="The job ends when every live replica serves the version, but at most so late.", rich_help_panel=RESULT
        ),
    ] = None,
    follow: Annotated[bool, typer.Option(help="Show the progress and wait for the end. Ctrl-C lets go; the job goes on.")] = True,
    request_id: Annotated[str, typer.Option(help="Your own unique key: the same again returns the same job.")] = "",
    as_json: JsonOption = False,
    trainer: TrainerOption = None,
) -> None:
    """Tune a soft prompt on examples, publish it, and wait until the first live replica serves it."""
    from softprompt.cli.following import follow as follow_job
    from softprompt.cli.following import show_verdict

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
        priority=priority,
        max_runtime_seconds=max_runtime,
    )
    with open_client(trainer) as client:
        job = client.create_job(spec, request_id=request_id)
        if not follow:
            for sentence in repetition(job.dataset_statistics):
                stderr().print(sentence, markup=False)
        if follow:
            stderr().print(f"{job.name} is queued", markup=False)
            show_verdict(client, follow_job(client, job.name, as_json=as_json), as_json=as_json)
        elif as_json:
            print_json(job)
        else:
            show(job.name)


def _init(method: InitMethod | None, text: str, source: str | None) -> Init | None:
    if source is not None:
        if text or method not in (None, InitMethod.FROM_PROMPT):
            raise typer.BadParameter("--from starts from a version: it excludes --init-text and other --init")
        return Init(InitMethod.FROM_PROMPT, source=source)
    if text and method not in (None, InitMethod.TEXT):
        raise typer.BadParameter("--init-text needs --init text")
    return Init(InitMethod.TEXT, text) if text else None if method is None else Init(method)
