"""The dataclasses are what the messages are: every field, both ways."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from enum import Enum
from typing import Any

import pytest
from google.protobuf.message import Message
from prompttuning.v1 import common_pb2, generation_pb2, prompts_pb2, tuning_pb2

from shared.errors import InvalidInput
from shared.wire.mirror import read, write
from softprompt.types import common, datasets, generation, jobs, prompts, report, service, spec

MIRRORS = [
    (common.BaseModelInfo, common_pb2.BaseModel),
    (common.Comparison, common_pb2.Comparison),
    (common.Message, common_pb2.Message),
    (common.Sampling, common_pb2.SamplingParams),
    (common.Template, common_pb2.Template),
    (generation.CandidateScore, generation_pb2.CandidateScore),
    (generation.Completion, generation_pb2.Completion),
    (generation.Generation, generation_pb2.GenerateResponse),
    (generation.GenerationDelta, generation_pb2.GenerationDelta),
    (generation.GenerationEnd, generation_pb2.GenerationEnd),
    (generation.GenerationLimits, generation_pb2.GenerationLimits),
    (generation.GenerationStart, generation_pb2.GenerationStart),
    (generation.InputToken, generation_pb2.InputToken),
    (generation.LoadedPrompt, generation_pb2.LoadedPrompt),
    (generation.LoadedPrompts, generation_pb2.ListLoadedPromptsResponse),
    (generation.ModelInfo, generation_pb2.GetModelInfoResponse),
    (generation.Scores, generation_pb2.ScoreResponse),
    (generation.TokenAlternative, generation_pb2.TokenAlternative),
    (generation.TokenCount, generation_pb2.CountTokensResponse),
    (generation.TokenIds, generation_pb2.TokenIds),
    (generation.TokenLogprob, generation_pb2.TokenLogprob),
    (prompts.Alias, prompts_pb2.Alias),
    (prompts.AliasTarget, prompts_pb2.AliasTarget),
    (prompts.Prompt, prompts_pb2.Prompt),
    (prompts.PromptStatus, prompts_pb2.GetPromptStatusResponse),
    (prompts.PromptVersion, prompts_pb2.PromptVersion),
    (prompts.ReplicaRefusal, prompts_pb2.ReplicaRefusal),
    (prompts.ReplicaServing, prompts_pb2.ReplicaServing),
    (prompts.ReplicaStatus, prompts_pb2.ReplicaStatus),
    (prompts.VersionStatus, prompts_pb2.VersionStatus),
    (datasets.DatasetStatistics, tuning_pb2.DatasetStatistics),
    (report.ConfusionCell, tuning_pb2.ConfusionCell),
    (report.Evaluation, tuning_pb2.Evaluation),
    (report.HeldOutAnswer, tuning_pb2.HeldOutAnswer),
    (report.JobCost, tuning_pb2.JobCost),
    (report.JobLineage, tuning_pb2.JobLineage),
    (report.JobReport, tuning_pb2.JobReport),
    (report.ModelAnswer, tuning_pb2.ModelAnswer),
    (report.TrainingPoint, tuning_pb2.TrainingPoint),
    (spec.Hyperparameters, tuning_pb2.Hyperparameters),
    (spec.Init, tuning_pb2.PromptInit),
    (jobs.DistillationResult, tuning_pb2.DistillationResult),
    (spec.Distillation, tuning_pb2.Distillation),
    (jobs.NearestToken, tuning_pb2.NearestToken),
    (spec.PublishGate, tuning_pb2.PublishGate),
    (spec.PublishPolicy, tuning_pb2.PublishPolicy),
    (jobs.SearchCandidate, tuning_pb2.SearchCandidate),
    (service.ServiceInfo, tuning_pb2.GetServiceInfoResponse),
    (service.Webhook, tuning_pb2.Webhook),
    (service.DeadLetter, tuning_pb2.DeadLetter),
    (datasets.StoredDataset, tuning_pb2.Dataset),
    (jobs.TuningError, tuning_pb2.TuningError),
    (jobs.TuningJob, tuning_pb2.TuningJob),
    (service.TuningLimits, tuning_pb2.TuningLimits),
    (jobs.TuningProgress, tuning_pb2.TuningProgress),
    (jobs.TuningResult, tuning_pb2.TuningResult),
    (spec.TuningSpec, tuning_pb2.TuningSpec),
    (datasets.UploadedDataset, tuning_pb2.UploadDatasetResponse),
]
ENUMS = [(generation.FinishReason, generation_pb2.FinishReason, "FINISH_REASON_")]  # the others: tests/shared/wire


@pytest.mark.parametrize(("kind", "message"), MIRRORS)
def test_a_dataclass_has_exactly_its_messages_fields(kind: type[Any], message: type[Message]) -> None:
    ours = {
        field.name.removesuffix("_seconds") for field in dataclasses.fields(kind) if not field.metadata.get("internal")
    }
    theirs = {name.removesuffix("_seconds") for name in message.DESCRIPTOR.fields_by_name}
    assert ours == theirs


@pytest.mark.parametrize(("kind", "message"), MIRRORS)
def test_an_empty_message_can_be_read(kind: type[Any], message: type[Message]) -> None:
    assert isinstance(read(kind, message()), kind)


@pytest.mark.parametrize(("ours", "theirs", "prefix"), ENUMS)
def test_an_enum_has_exactly_its_values(ours: type[Enum], theirs: Any, prefix: str) -> None:
    assert [prefix + item.value for item in ours] == theirs.keys()[1:]


def test_every_kind_of_value_survives_both_ways() -> None:
    hyperparameters = spec.Hyperparameters(
        num_virtual_tokens=8,
        init=spec.Init(spec.InitMethod.TEXT, "hello"),
        reparameterisation=spec.Reparameterisation.NONE,
        learning_rate=0.003,
        schedule=spec.LearningRateSchedule.LINEAR,
        early_stop_patience=0,
        balance_classes=False,
        class_weights={"a": 0.5},
        seed=0,
    )
    message = write(hyperparameters, tuning_pb2.Hyperparameters())
    assert message.HasField("seed")
    assert not message.HasField("num_steps")
    assert read(spec.Hyperparameters, message) == hyperparameters


def test_sampling_survives_both_ways() -> None:
    sampling = common.Sampling(
        temperature=0.0, stop_sequences=("a", "b"), stop_token_ids=(3,), ignore_eos=False, seed=2**40
    )
    assert read(common.Sampling, write(sampling, common_pb2.SamplingParams())) == sampling


def test_a_spec_survives_but_for_its_files() -> None:
    given = spec.TuningSpec(
        prompt="tone",
        dataset="datasets/sha256-00",
        validation_dataset="file:///data/held.jsonl",
        template=common.Template("Q: {input}", common.TemplateFormat.CHAT, "be kind"),
        task=spec.TaskKind.CHAT,
        labels=("a", "b"),
        hyperparameters=spec.Hyperparameters(num_steps=3),
        publish=spec.PublishPolicy(
            "canary", spec.PublishGate(beat_current=True, minimum_metric=0.5), wait_until_served_seconds=2.5
        ),
        priority=-3,
        max_runtime_seconds=1.5,
        sampling_defaults=common.Sampling(temperature=0.5),
        annotations={"team": "shop"},
    )
    message = write(given, tuning_pb2.TuningSpec(), "spec")
    assert message.dataset.dataset == "datasets/sha256-00"
    assert message.validation_dataset.uri == "file:///data/held.jsonl"
    assert read(spec.TuningSpec, message) == given


def test_a_fraction_and_a_file_exclude_each_other() -> None:
    given = spec.TuningSpec(
        prompt="tone", dataset="datasets/sha256-00", validation_dataset="datasets/sha256-01", validation_fraction=0.1
    )
    with pytest.raises(InvalidInput, match="validation_fraction"):
        write(given, tuning_pb2.TuningSpec(), "spec")


def test_times_are_aware_and_durations_are_seconds() -> None:
    message = generation_pb2.LoadedPrompt(
        version="prompts/a/versions/1", state=generation_pb2.LoadedPrompt.STATE_LOADED
    )
    message.load_time.FromJsonString("2026-01-02T03:04:05Z")
    message.publish_to_served.FromMilliseconds(250)
    loaded = read(generation.LoadedPrompt, message)
    assert loaded.load_time == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert loaded.publish_to_served_seconds == 0.25
    assert loaded.state is generation.LoadedState.LOADED


@pytest.mark.parametrize(
    ("value", "field"),
    [
        (spec.Hyperparameters(num_steps="many"), "num_steps"),  # type: ignore[arg-type]
        (spec.Hyperparameters(num_virtual_tokens=2**40), "num_virtual_tokens"),
        (spec.Hyperparameters(metric="nonsense"), "metric"),  # type: ignore[arg-type]
        (spec.Hyperparameters(init=spec.Init(text=7)), "init.text"),  # type: ignore[arg-type]
    ],
)
def test_a_value_that_does_not_fit_names_its_field(value: object, field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        write(value, tuning_pb2.Hyperparameters())
    assert [violation.field for violation in caught.value.violations] == [field]


def test_one_text_is_no_list_of_stop_sequences() -> None:
    with pytest.raises(InvalidInput, match="stop_sequences"):
        write(common.Sampling(stop_sequences="stop"), common_pb2.SamplingParams())  # type: ignore[arg-type]
