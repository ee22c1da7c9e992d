"""The recipe: default hyperparameters, and checks that the given ones fit together.

docs/training.md has the measurement behind each constant. The recipe depends only on the data's size and labels, so it
can't be tuned to one dataset by accident. Imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from shared.errors import FieldViolation, InvalidInput
from shared.text.counted import counted
from shared.text.template import INPUT_FIELD, Template, TemplateFormat
from shared.values.base_model import BaseModelInfo
from shared.values.enums import CLASS_METRICS, TEXT_METRICS
from shared.values.hyperparameters import MAX_VIRTUAL_TOKENS
from trainer_service.training.spec import (
    FilledHyperparameters,
    Hyperparameters,
    Init,
    InitMethod,
    LearningRateSchedule,
    Metric,
    PrefixKind,
    Reparameterisation,
    TaskKind,
)


@dataclass(frozen=True)
class KindRecipe:
    """What the recipe chooses and allows differently for each kind of prefix. `noun`: what it is, for errors."""

    noun: str
    num_virtual_tokens: int
    learning_rate: float
    sources: frozenset[PrefixKind]
    """Kinds of the versions that training can start from."""
    is_of_keys_and_values: bool = False
    """Whether a position is trained as keys and values of each layer, and not as an embedding."""
    min_virtual_tokens: int = 1
    has_reparameterisations: bool = False
    has_demonstrations: bool = False


OF_KIND = {
    PrefixKind.PROMPT: KindRecipe(
        "a soft prompt",
        num_virtual_tokens=100,
        learning_rate=1e-2,
        sources=frozenset({PrefixKind.PROMPT}),
        has_reparameterisations=True,
    ),
    PrefixKind.PREFIX: KindRecipe(
        "keys and values",
        num_virtual_tokens=50,
        learning_rate=1e-2,
        sources=frozenset({PrefixKind.PROMPT, PrefixKind.PREFIX}),
        is_of_keys_and_values=True,
        min_virtual_tokens=2,
        has_demonstrations=True,
    ),
}
"""The shared prefix makes long prompts cheap. A position of keys and values has many more numbers than a virtual token;
`leaves.KeyValueLeaves` says how they start and which of them are trained.
"""
MAX_CONTEXT_SHARE = 1 / 8
"""With a short context, a shorter prefix leaves room for the text."""
BATCH_SIZE, MAX_GPU_BATCH_SIZE = 8, 64
MIN_STEPS, MAX_STEPS, NUM_EPOCHS = 320, 16_000, 2
WARMUP_FRACTION, MAX_WARMUP_STEPS = 0.1, 100
MAX_GRAD_NORM = 1.0
NUM_EVALUATIONS, MIN_EVALUATION_INTERVAL = 8, 10
T = TypeVar("T")
STEPS_LIMIT = 10_000_000
FIELD = "spec.hyperparameters"


def fill(
    request: Hyperparameters,
    task: TaskKind,
    num_train: int,
    info: BaseModelInfo,
    template: Template,
    labels: Sequence[str] = (),
    *,
    source_virtual_tokens: int | None = None,
    source_kind: PrefixKind | None = None,
    max_virtual_tokens: int = MAX_VIRTUAL_TOKENS,
    max_positions: int = 0,
    on_gpu: bool = False,
) -> FilledHyperparameters:
    """The complete hyperparameters of a job.

    `source_virtual_tokens`, `source_kind`: of the version that FROM_PROMPT starts from. `max_virtual_tokens`: the
    longest prompt that the recipe may choose. `max_positions`: the longest sequence; 0: the model's context. `on_gpu`:
    whether the workers have GPUs, which process larger batches in the same time.

    Raises InvalidInput naming every `spec.hyperparameters.*` field that is out of range for this model and dataset.
    """
    if num_train < 1:
        raise InvalidInput.of("spec.dataset", "has no training examples")
    init = _init(request.init, task, template, labels)
    kind = request.kind or source_kind or _kind(init)
    batch_size = request.batch_size or _batch_size(num_train, on_gpu)
    num_steps = request.num_steps or _num_steps(request.num_epochs, num_train, batch_size)
    filled = FilledHyperparameters(
        num_virtual_tokens=request.num_virtual_tokens
        or source_virtual_tokens
        or _num_virtual_tokens(kind, max_positions or info.max_positions, max_virtual_tokens),
        init=init,
        reparameterisation=request.reparameterisation or Reparameterisation.NONE,
        learning_rate=request.learning_rate or OF_KIND[kind].learning_rate,
        schedule=request.schedule or LearningRateSchedule.COSINE,
        warmup_steps=_given(request.warmup_steps, min(MAX_WARMUP_STEPS, int(num_steps * WARMUP_FRACTION))),
        weight_decay=_given(request.weight_decay, 0.0),
        max_grad_norm=_given(request.max_grad_norm, MAX_GRAD_NORM),
        batch_size=batch_size,
        num_steps=num_steps,
        evaluation_interval_steps=request.evaluation_interval_steps
        or max(MIN_EVALUATION_INTERVAL, math.ceil(num_steps / NUM_EVALUATIONS)),
        early_stop_patience=_given(request.early_stop_patience, 0),
        label_smoothing=_given(request.label_smoothing, 0.0),
        balance_classes=_given(request.balance_classes, False),
        metric=request.metric or (Metric.ACCURACY if task is TaskKind.CLASSIFICATION else Metric.LOSS),
        seed=_given(request.seed, 0),
        search=_given(request.search, False),
        class_weights=dict(request.class_weights),
        kind=kind,
    )
    violations = [
        *_violations(request, filled, task, num_train, info, source_virtual_tokens),
        *_weight_violations(filled, task, labels),
    ]
    if source_kind is not None and source_kind not in OF_KIND[kind].sources:
        reason = f"is {kind}, but the version to start from has {OF_KIND[source_kind].noun}: use {source_kind}"
        violations.append(FieldViolation(f"{FIELD}.kind", reason))
    if violations:
        raise InvalidInput(violations)
    return filled


def check_init(init: Init, labels: Sequence[str], tokenizer: Any) -> None:
    """Raises InvalidInput if the init text, or all labels together, have no tokens in this tokenizer."""
    texts = {InitMethod.TEXT: [init.text], InitMethod.LABELS: list(labels)}.get(init.method or InitMethod.TEXT)
    if texts is not None and not any(tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts):
        raise InvalidInput.of(f"{FIELD}.init.text", f"{init.text[:40]!r} has no tokens in this model's vocabulary")


def init_text(task: TaskKind, template: Template, labels: Sequence[str], max_labels: int = 21) -> str:
    """A plain instruction for the task; TEXT init starts training from its embeddings. It names the first `max_labels`
    labels and the last one: the start needs no more.
    """
    instruction = template.system.strip() if template.format is TemplateFormat.CHAT else ""
    literal = " ".join(template.text.replace(INPUT_FIELD, " ").split())
    if task is TaskKind.CLASSIFICATION:
        shown = ", ".join(labels[:-1][: max_labels - 1]) + f" or {labels[-1]}"
        default = f"Decide for the following text whether it is {shown}. Answer with one of these words only."
    else:
        default = (
            "Read the following input carefully and write exactly the answer that is wanted for it, "
            "in the right form and tone."
        )
    return " ".join(part for part in (instruction, default, literal if len(literal) > 24 else "") if part)


def _init(requested: Init | None, task: TaskKind, template: Template, labels: Sequence[str]) -> Init:
    init = requested or Init()
    method = init.chosen_method or InitMethod.TEXT
    if method is InitMethod.TEXT and not init.text:
        return Init(InitMethod.TEXT, init_text(task, template, labels))
    return replace(init, method=method)


def _kind(init: Init) -> PrefixKind:
    return PrefixKind.PREFIX if init.method is InitMethod.DEMONSTRATIONS else PrefixKind.PROMPT


def coverage_note(request: Hyperparameters, filled: FilledHyperparameters, num_train: int) -> str:
    """A note if the recipe chose the number of steps and it doesn't cover every example once; else empty."""
    seen = filled.num_steps * filled.batch_size
    if seen >= num_train or request.num_steps is not None or request.num_epochs is not None:
        return ""
    share = f"{seen} of the {num_train} training examples ({min(99, max(1, round(100 * seen / num_train)))} %)"
    return f"{filled.num_steps} steps of {filled.batch_size} see {share}, each once: num_epochs 1 sees them all"


def _num_virtual_tokens(kind: PrefixKind, max_positions: int, limit: int) -> int:
    return max(1, min(OF_KIND[kind].num_virtual_tokens, limit, int(max_positions * MAX_CONTEXT_SHARE)))


def _batch_size(num_train: int, on_gpu: bool) -> int:
    """8; on a GPU, the largest power of two from 8 to 64 with which one epoch has at least MIN_STEPS steps."""
    wanted = BATCH_SIZE
    while on_gpu and wanted < MAX_GPU_BATCH_SIZE and 2 * wanted * MIN_STEPS <= num_train:
        wanted *= 2
    return min(wanted, num_train)


def _num_steps(num_epochs: float | None, num_train: int, batch_size: int) -> int:
    if num_epochs is not None:
        return max(1, math.ceil(num_epochs * num_train / batch_size))
    return min(MAX_STEPS, max(MIN_STEPS, math.ceil(NUM_EPOCHS * num_train / batch_size)))


def _given(value: T | None, default: T) -> T:
    return default if value is None else value


def _weight_violations(filled: FilledHyperparameters, task: TaskKind, labels: Sequence[str]) -> list[FieldViolation]:
    name = f"{FIELD}.class_weights"
    if not filled.class_weights:
        return []
    if task is not TaskKind.CLASSIFICATION:
        return [FieldViolation(name, "needs examples of input and label")]
    if filled.balance_classes:
        return [FieldViolation(name, "excludes balance_classes: give one of them")]
    unknown = [label for label in filled.class_weights if label not in labels]
    return [FieldViolation(f"{name}[{label[:40]!r}]", "is not in the label set") for label in unknown[:20]]


def _violations(
    request: Hyperparameters,
    filled: FilledHyperparameters,
    task: TaskKind,
    num_train: int,
    info: BaseModelInfo,
    source_virtual_tokens: int | None,
) -> list[FieldViolation]:
    found = list[FieldViolation]()

    def refuse(name: str, reason: str) -> None:
        found.append(FieldViolation(f"{FIELD}.{name}", reason))

    if filled.num_steps > STEPS_LIMIT:
        refuse("num_epochs", f"makes {filled.num_steps} steps; at most {STEPS_LIMIT} are allowed")
    if filled.num_virtual_tokens >= info.max_positions - 1:
        refuse(
            "num_virtual_tokens",
            f"{filled.num_virtual_tokens} leave no room in the model's context of {info.max_positions} tokens",
        )
    if source_virtual_tokens is not None and filled.num_virtual_tokens != source_virtual_tokens:
        refuse(
            "num_virtual_tokens",
            f"is {filled.num_virtual_tokens}, the version to start from has {source_virtual_tokens}",
        )
    if filled.batch_size > num_train:
        refuse("batch_size", f"{filled.batch_size} is more than the {counted(num_train, 'training example')}")
    if filled.warmup_steps >= filled.num_steps and filled.warmup_steps > 0:
        refuse("warmup_steps", f"{filled.warmup_steps} must be less than the {filled.num_steps} steps")
    if filled.metric in CLASS_METRICS and task is not TaskKind.CLASSIFICATION:
        refuse("metric", f"{filled.metric.value} needs examples of input and label; these are {task.value.lower()}")
    if filled.metric in TEXT_METRICS and task is TaskKind.CLASSIFICATION:
        refuse("metric", f"{filled.metric.value} compares generated text; classification has ACCURACY and MACRO_F1")
    if filled.balance_classes and task is not TaskKind.CLASSIFICATION:
        refuse("balance_classes", "needs examples of input and label")
    if filled.init.method is InitMethod.LABELS and task is not TaskKind.CLASSIFICATION:
        refuse("init.method", "LABELS needs examples of input and label; use TEXT")
    ours = OF_KIND[filled.kind]
    if filled.num_virtual_tokens < ours.min_virtual_tokens:
        refuse("num_virtual_tokens", f"must be at least {ours.min_virtual_tokens} for kind {filled.kind}")
    if filled.reparameterisation is not Reparameterisation.NONE and not ours.has_reparameterisations:
        refuse("reparameterisation", f"is for soft prompts; {ours.noun} are trained as they are")
    if filled.init.method is InitMethod.DEMONSTRATIONS and not ours.has_demonstrations:
        refuse("init.method", "DEMONSTRATIONS needs a prefix of keys and values, kind PREFIX")
    if filled.init.method is InitMethod.TEXT and not filled.init.text.strip():
        refuse("init.text", "is blank")
    return found
