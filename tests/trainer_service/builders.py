"""Small complete specs and records for tests."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from shared.text.repetition import Repetition, RepetitionCounter
from shared.text.template import Template
from shared.values.base_model import BaseModelInfo
from trainer_service.jobs.model import EffectiveSpec, Job, StoredSpec, new_job_id
from trainer_service.jobs.record import Record, queue_key, to_datetime
from trainer_service.training.spec import (
    Example,
    FilledHyperparameters,
    Hyperparameters,
    Init,
    InitMethod,
    LearningRateSchedule,
    Metric,
    Reparameterisation,
    TaskKind,
    TrainingSpec,
)

BASE_MODEL = BaseModelInfo(
    id="tiny",
    fingerprint="sha256:" + "1" * 64,
    tokenizer_digest="sha256:" + "2" * 64,
    architecture="LlamaForCausalLM",
    hidden_size=8,
    vocab_size=261,
    num_layers=2,
    max_positions=512,
)


def repetition_of(examples: Iterable[Example]) -> Repetition:
    """The counts of some examples."""
    counter = RepetitionCounter()
    for example in examples:
        counter.add(example)
    return counter.result()


def hyperparameters(**changes: Any) -> FilledHyperparameters:
    base = FilledHyperparameters(
        num_virtual_tokens=4,
        init=Init(method=InitMethod.SAMPLE_VOCAB),
        reparameterisation=Reparameterisation.NONE,
        learning_rate=0.01,
        schedule=LearningRateSchedule.CONSTANT,
        warmup_steps=0,
        weight_decay=0.0,
        max_grad_norm=1.0,
        batch_size=4,
        num_steps=5,
        evaluation_interval_steps=5,
        early_stop_patience=0,
        label_smoothing=0.0,
        balance_classes=False,
        metric=Metric.LOSS,
        seed=1,
        search=False,
    )
    return base.model_copy(update=changes)


def effective_spec(base_model: BaseModelInfo = BASE_MODEL, **changes: Any) -> EffectiveSpec:
    training = TrainingSpec(task=TaskKind.GENERATION, template=Template(), hyperparameters=hyperparameters(**changes))
    return EffectiveSpec(base_model=base_model, training=training, validation_fraction=0.25, max_runtime_seconds=3600)


def spec(first_input: str = "plain", prompt: str = "tone", num_steps: int | None = None, **changes: Any) -> StoredSpec:
    asked = Hyperparameters(num_steps=num_steps)
    return StoredSpec(prompt=prompt, dataset=f"datasets/{first_input}", hyperparameters=asked, **changes)


def record(
    tuning: StoredSpec | None = None, *, queued_at: float | None = None, base_model: str = "tiny", **job: Any
) -> Record:
    """A newly accepted job."""
    tuning = tuning or spec()
    now = time.time() if queued_at is None else queued_at
    effective = effective_spec(replace(BASE_MODEL, id=base_model))
    made = Job(id=new_job_id(), spec=tuning, effective=effective, create_time=to_datetime(now), **job)
    return Record(made, queue_key=queue_key(tuning.priority, now))
