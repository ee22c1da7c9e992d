"""Conversion between messages and the trainer's types: covers every enum and field, and both ways without loss."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from prompttuning.v1 import prompts_pb2, tuning_pb2

from shared.caller import Caller, Role, calling
from shared.prompt.manifest import Manifest, utc_now
from shared.store.commit import AliasTarget, VersionSummary
from shared.store.index import PromptRecord, VersionRecord
from shared.text.repetition import Repetition
from shared.text.template import Template, TemplateFormat
from shared.values import prompts as values
from shared.values.results import (
    Comparison,
    DistillationResult,
    EncodingStatistics,
    NearestToken,
    SearchCandidate,
    TuningError,
    TuningProgress,
    TuningResult,
)
from shared.values.sampling import Sampling
from shared.values.spec import Distillation, PublishGate, PublishPolicy, TuningSpec
from shared.wire.events import write_event
from shared.wire.mirror import write
from shared.wire.spec import read_checked_spec
from tests.trainer_service.builders import BASE_MODEL, effective_spec
from tests.trainer_service.requests import generation_examples, inline
from trainer_service.jobs.model import (
    PAYLOADS,
    Checkpoint,
    Evaluation,
    EventPayload,
    Job,
    JobEventKind,
    Note,
    StoredSpec,
)
from trainer_service.jobs.states import JobState
from trainer_service.jobs.view import shown_job, shown_payload
from trainer_service.prompt_view import shown_version
from trainer_service.servicers.prompts import stored_targets
from trainer_service.training.spec import (
    FilledHyperparameters,
    Hyperparameters,
    Init,
    InitMethod,
    LearningRateSchedule,
    Metric,
    Reparameterisation,
    TaskKind,
    TooLong,
)

COMPARISON = Comparison(
    rival="bare_model",
    metric="loss",
    value=1.0,
    rival_value=2.0,
    difference=1.0,
    low=0.5,
    high=1.5,
    num_examples=30,
    beats=True,
)
CANDIDATE = SearchCandidate(
    learning_rate=0.1,
    init_method=InitMethod.LABELS,
    num_steps=3,
    metrics={"loss": 1.0},
    chosen=True,
    end="worse",
    losses=(2.0, 1.5),
)
NOW = datetime(2026, 1, 2, 3, 4, 5, 678901, UTC)

SPEC = StoredSpec(
    prompt="support-tone",
    base_model="tiny",
    dataset="datasets/sha256-" + "a" * 64,
    validation_dataset="datasets/sha256-" + "b" * 64,
    template=Template(text="Q: {input}", format=TemplateFormat.CHAT, system="Be kind"),
    task=TaskKind.CLASSIFICATION,
    labels=("a", "b"),
    hyperparameters=Hyperparameters(
        num_virtual_tokens=7,
        init=Init(method=InitMethod.FROM_PROMPT, source="other@3"),
        reparameterisation=Reparameterisation.RESIDUAL,
        learning_rate=0.003,
        schedule=LearningRateSchedule.LINEAR,
        warmup_steps=0,
        weight_decay=0.0,
        max_grad_norm=0.0,
        batch_size=3,
        num_steps=100,
        evaluation_interval_steps=10,
        early_stop_patience=0,
        label_smoothing=0.0,
        balance_classes=False,
        class_weights={"a": 2.5},
        metric=Metric.MACRO_F1,
        seed=0,
        search=False,
    ),
    publish=PublishPolicy(
        alias="staging", gate=PublishGate(beat_bare_model=True, minimum_metric=0.0), wait_until_served_seconds=30
    ),
    priority=-3,
    max_runtime_seconds=90.5,
    sampling_defaults=Sampling(
        temperature=0.7, top_k=0, top_p=0.9, min_p=0.0, repetition_penalty=1.1, max_new_tokens=5, stop_sequences=("\n",)
    ),
    annotations={"team": "web"},
    deadline=NOW,
    too_long=TooLong.DROP,
)


def written(spec: TuningSpec) -> tuning_pb2.TuningSpec:
    return write(spec, tuning_pb2.TuningSpec(), "spec")


def test_every_field_of_a_spec_survives_both_ways() -> None:
    message = written(SPEC)
    unset = [field.name for field in message.DESCRIPTOR.fields if not is_set(message, field)]
    assert unset == ["validation_fraction", "distillation"], "what excludes other fields of the spec"
    assert StoredSpec(**vars(read_checked_spec(message))) == SPEC
    distilling = TuningSpec("a", "datasets/sha256-00", distillation=Distillation(8, 20))
    assert read_checked_spec(written(distilling)).distillation == Distillation(8, 20)


def test_what_is_left_out_stays_left_out() -> None:
    spec = tuning_pb2.TuningSpec(prompt="a", dataset=inline(generation_examples(2)))
    read = read_checked_spec(spec)
    assert read == TuningSpec("a", read.dataset)
    message = written(replace(read, dataset="datasets/sha256-00"))
    assert message.hyperparameters == tuning_pb2.Hyperparameters()
    assert not message.HasField("template")
    assert not message.HasField("max_runtime")


def test_no_alias_and_the_default_one_are_distinguished() -> None:
    for wire, moved in (("", "default"), ("-", ""), ("canary", "canary")):
        spec = tuning_pb2.TuningSpec(
            prompt="a", dataset=inline(generation_examples(2)), publish=tuning_pb2.PublishPolicy(alias=wire)
        )
        read = read_checked_spec(spec)
        assert read.publish.moved_alias == moved
        assert written(replace(read, dataset="x")).publish.alias == (wire or "default")


def test_every_field_of_a_job_is_in_its_message() -> None:
    repetition = Repetition(
        num_examples=10,
        num_distinct_inputs=4,
        num_duplicates=3,
        num_near_duplicates=2,
        num_contradictions=1,
        label_notes=("a note",),
    )
    job = Job(
        id="01",
        spec=SPEC,
        effective=effective_spec().model_copy(update={"repetition": repetition}),
        state=JobState.FAILED,
        attempt=2,
        queue_position=3,
        progress=TuningProgress(
            step=5,
            num_steps=10,
            train_loss=0.5,
            grad_norm=1.5,
            learning_rate=0.01,
            metrics={"loss": math.inf},
            best_step=4,
            num_prepared=3,
            num_examples=10,
            num_measured=2,
            num_models=5,
            examples_per_second=8.0,
            estimated_end_time=NOW + timedelta(seconds=5),
            num_skipped_steps=1,
        ),
        dataset_statistics=EncodingStatistics(
            num_train=9,
            num_validation=1,
            num_dropped=2,
            num_truncated=3,
            num_overlapping=1,
            mean_input_tokens=3.5,
            max_input_tokens=7,
            mean_target_tokens=2.5,
            max_target_tokens=4,
        ),
        error=TuningError(code="NAN_LOSS", message="m", field="f"),
        result=TuningResult(
            published=True,
            version="prompts/a/versions/1",
            digest="sha256:x",
            alias_moved=True,
            gate_decision="why",
            metrics={"loss": 1.0},
            bare_metrics={"loss": 2.0},
            template_metrics={"loss": 3.0},
            current_metrics={"loss": 4.0},
            nearest_tokens=(NearestToken(text="a", cosine=0.5),),
            score_stability=0.1,
            best_step=4,
            current_version="prompts/a/versions/1",
            served_by_all=False,
            serving="served by 1 of 2",
            instructed_metrics={"loss": 5.0},
            few_shot_metrics={"loss": 6.0},
            num_shots=7,
            comparisons=(COMPARISON,),
            verdict="beats the bare model",
            metric_low=0.5,
            metric_high=1.5,
            num_judging=30,
            judged_apart=True,
            candidates=(CANDIDATE,),
            num_skipped_steps=1,
            distillation=DistillationResult(9, 2, 300, 70, 6, 0.25, 1.5, 0.75, 0.5, 0.5, 0.25),
        ),
        create_time=NOW,
        start_time=NOW,
        end_time=NOW,
        last_event=8,
        checkpointed=True,
        estimated_start_time=NOW,
    )
    message = write(shown_job(job), tuning_pb2.TuningJob())
    found = message.result.comparisons[0], message.result.candidates[0]
    for part in (message, message.progress, message.dataset_statistics, message.error, message.result, *found):
        assert [field.name for field in part.DESCRIPTOR.fields if not is_set(part, field)] == [], part.DESCRIPTOR.name
    assert message.create_time.ToDatetime(UTC) == NOW
    assert message.progress.metrics["loss"] == math.inf
    filled = message.effective_spec.hyperparameters
    left_open = [field.name for field in filled.DESCRIPTOR.fields if not is_set(filled, field)]
    assert left_open == ["num_epochs", "class_weights"]


def test_every_kind_of_event_has_a_message() -> None:
    job = Job(id="01", spec=SPEC, effective=effective_spec(), create_time=NOW)
    payloads: dict[JobEventKind, EventPayload] = {
        JobEventKind.STATE_CHANGED: job,
        JobEventKind.PROGRESS: TuningProgress(step=1),
        JobEventKind.EVALUATION: Evaluation(step=1, metrics={"loss": 1.0}, is_best=True),
        JobEventKind.CHECKPOINT: Checkpoint(step=1),
        JobEventKind.NOTE: Note(text="hello"),
    }
    assert payloads.keys() == PAYLOADS.keys()
    kinds = {field.name for field in tuning_pb2.TuningEvent.DESCRIPTOR.oneofs_by_name["kind"].fields}
    found = set()
    for number, payload in enumerate(payloads.values(), start=1):
        message = write_event(number, NOW, shown_payload(payload))
        assert (message.number, message.time.ToDatetime(UTC)) == (number, NOW)
        found.add(message.WhichOneof("kind"))
    assert found == kinds - {"heartbeat"}  # which is no event of a job: a watch's stream sends it


def test_hyperparameters_have_the_same_fields_on_both_sides() -> None:
    wire = {field.name for field in tuning_pb2.Hyperparameters.DESCRIPTOR.fields}
    assert wire == {field.name for field in fields(Hyperparameters)}
    message = written(SPEC).hyperparameters
    assert message.HasField("warmup_steps")  # zero is not the same as left out
    assert wire - {"num_epochs"} == set(FilledHyperparameters.model_fields)


def test_weights_are_kept_as_ratios() -> None:
    targets = (AliasTarget(1, 90), AliasTarget(2, 10))
    assert stored_targets([values.AliasTarget(one.version, one.weight) for one in targets]) == targets
    cases = {
        (0.75, 0.25): (3, 1),
        (0.9, 0.1): (9, 1),
        (1 / 3, 2 / 3): (1, 2),
        (1e300, 1e300): (1, 1),
        (5e-324, 1e308): (1, 1_000_000),
    }
    for weights, kept in cases.items():
        given = [values.AliasTarget(number, weight) for number, weight in enumerate(weights, start=1)]
        assert tuple(target.weight for target in stored_targets(given)) == kept


def is_set(message: Any, field: FieldDescriptor) -> bool:
    value = getattr(message, field.name)
    return message.HasField(field.name) if field.has_presence else bool(value)


def test_a_version_shows_its_origin_to_callers_that_may_name_it() -> None:
    summary = VersionSummary("tiny", "sha256:" + "1" * 64, 4, 8, parent="prompts/acme-tone/versions/3")
    record = VersionRecord("support-tone", 1, "sha256:" + "2" * 64, 10, "tuningJobs/1", utc_now(), 1, summary)
    recipe: dict[str, Any] = {
        "hyperparameters": {"init": {"source_version": "prompts/acme-tone/versions/3", "method": "FROM_PROMPT"}}
    }
    manifest = Manifest(
        prompt="support-tone",
        base_model=BASE_MODEL,
        template=Template(),
        num_virtual_tokens=4,
        hidden_size=8,
        recipe=recipe,
        created_at=utc_now(),
    )
    prompt = PromptRecord("support-tone", 1, {1: record})
    assert str(write(shown_version(prompt, record, manifest), prompts_pb2.PromptVersion())).count("acme-tone") == 2
    with calling(Caller("support", frozenset({Role.VIEWER}), ("support-*",))):
        shown = write(shown_version(prompt, record, manifest), prompts_pb2.PromptVersion())
    assert "acme" not in str(shown)
    shown_recipe: Any = shown.recipe
    assert shown_recipe["hyperparameters"]["init"]["method"] == "FROM_PROMPT"
    assert recipe["hyperparameters"]["init"]["source_version"] == "prompts/acme-tone/versions/3", (
        "the manifest itself is left alone"
    )
