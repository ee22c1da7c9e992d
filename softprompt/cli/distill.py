"""`softprompt distill`: replace a long instruction or document by a prompt that behaves as if it were there."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from shared.values.hyperparameters import Hyperparameters
from shared.values.spec import Distillation, PublishGate, PublishPolicy, TuningSpec
from shared.values.template import Template
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
)
from softprompt.cli.options import JsonOption, TrainerOption, example, options_under
from softprompt.data.distillation import distillation_examples

app = typer.Typer()

STUDY = "Self-study"
in_study = options_under(STUDY)


@app.command(epilog=example("softprompt distill handbook.txt --prompt support --questions inputs.txt"))
@with_template(STUDY)
@with_hyperparameters(TRAINING)
def distill(
    file: Annotated[Path, typer.Argument(help="The system prompt, instruction or document: a text file in UTF-8.")],
    *,
    prompt: Annotated[str, typer.Option(help="Name of the prompt. The job publishes its next version.")],
    questions: Annotated[
        Path | None,
        in_study(
            help="Inputs without answers, one in each line, or JSON lines with an input; the base model writes others."
        ),
    ] = None,
    num_questions: Annotated[
        int | None, in_study(help="Total number of questions. Default: those of --questions, or 256.")
    ] = None,
    answer_tokens: Annotated[int | None, in_study(help="Longest answer in tokens. Default: 128.")] = None,
    validation_fraction: Annotated[
        float | None, in_study(help="Fraction of the questions to hold out, 0 to 1.")
    ] = None,
    template: Template | None,
    base_model: BaseModelOption = "",
    hyperparameters: Hyperparameters,
    priority: PriorityOption = 0,
    max_runtime: MaxRuntimeOption = None,
    annotation: AnnotationOption = None,
    alias: AliasOption = "default",
    beat_bare_model: Annotated[
        bool,
        in_result("--beat-bare-model", help="Publish only if the prompt is nearer to the teacher than the bare model."),
    ] = False,
    maximum_kl: Annotated[
        float | None, in_result(help="Publish only if the divergence from the teacher is at most this.")
    ] = None,
    follow: FollowOption = True,
    validate_only: Annotated[
        bool, typer.Option("--validate-only", help="Store the text and check the job; create none.")
    ] = False,
    request_id: RequestIdOption = "",
    as_json: JsonOption = False,
    trainer: TrainerOption = None,
) -> None:
    """Distill a long instruction or document into a prompt: the base model with the text asks itself questions and
    answers them, and the prompt learns to answer so without the text.
    """
    gate = PublishGate(beat_bare_model, False, maximum_kl)
    spec = TuningSpec(
        prompt=prompt,
        dataset=distillation_examples(file, () if questions is None else questions),
        distillation=Distillation(num_questions, answer_tokens),
        validation_fraction=validation_fraction,
        base_model=base_model,
        template=template,
        hyperparameters=hyperparameters,
        publish=PublishPolicy(alias, gate if gate.has_conditions else None),
        priority=priority,
        max_runtime_seconds=max_runtime,
        annotations=key_values(annotation, "--annotation"),
    )
    submit(spec, trainer, validate_only=validate_only, request_id=request_id, follow=follow, as_json=as_json)
