"""The dataclasses are what the messages are: every field, both ways."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from enum import Enum
from typing import Any

import pytest
from google.protobuf.message import Message
from prompttuning.v1 import common_pb2, generation_pb2, prompts_pb2, tuning_pb2

import softprompt
from shared.errors import InvalidInput
from shared.wire.mirror import read, write

MIRRORS = [
    (softprompt.BaseModelInfo, common_pb2.BaseModel),
    (softprompt.Comparison, common_pb2.Comparison),
    (softprompt.Message, common_pb2.Message),
    (softprompt.Sampling, common_pb2.SamplingParams),
    (softprompt.Template, common_pb2.Template),
    (softprompt.CandidateScore, generation_pb2.CandidateScore),
    (softprompt.Completion, generation_pb2.Completion),
    (softprompt.Generation, generation_pb2.GenerateResponse),
    (softprompt.GenerationDelta, generation_pb2.GenerationDelta),
    (softprompt.GenerationEnd, generation_pb2.GenerationEnd),
    (softprompt.GenerationLimits, generation_pb2.GenerationLimits),
    (softprompt.GenerationStart, generation_pb2.GenerationStart),
    (softprompt.InputToken, generation_pb2.InputToken),
    (softprompt.LoadedPrompt, generation_pb2.LoadedPrompt),
    (softprompt.LoadedPrompts, generation_pb2.ListLoadedPromptsResponse),
    (softprompt.ModelInfo, generation_pb2.GetModelInfoResponse),
    (softprompt.Scores, generation_pb2.ScoreResponse),
    (softprompt.TokenAlternative, generation_pb2.TokenAlternative),
    (softprompt.TokenCount, generation_pb2.CountTokensResponse),
    (softprompt.TokenIds, generation_pb2.TokenIds),
    (softprompt.TokenLogprob, generation_pb2.TokenLogprob),
    (softprompt.Alias, prompts_pb2.Alias),
    (softprompt.AliasTarget, prompts_pb2.AliasTarget),
    (softprompt.Prompt, prompts_pb2.Prompt),
    (softprompt.PromptStatus, prompts_pb2.GetPromptStatusResponse),
    (softprompt.PromptVersion, prompts_pb2.PromptVersion),
    (softprompt.ReplicaRefusal, prompts_pb2.ReplicaRefusal),
    (softprompt.ReplicaServing, prompts_pb2.ReplicaServing),
    (softprompt.ReplicaStatus, prompts_pb2.ReplicaStatus),
    (softprompt.VersionStatus, prompts_pb2.VersionStatus),
    (softprompt.DatasetStatistics, tuning_pb2.DatasetStatistics),
    (softprompt.ConfusionCell, tuning_pb2.ConfusionCell),
    (softprompt.Evaluation, tuning_pb2.Evaluation),
    (softprompt.HeldOutAnswer, tuning_pb2.HeldOutAnswer),
    (softprompt.JobCost, tuning_pb2.JobCost),
    (softprompt.JobLineage, tuning_pb2.JobLineage),
    (softprompt.JobReport, tuning_pb2.JobReport),
    (softprompt.ModelAnswer, tuning_pb2.ModelAnswer),
    (softprompt.TrainingPoint, tuning_pb2.TrainingPoint),
    (softprompt.Hyperparameters, tuning_pb2.Hyperparameters),
    (softprompt.Init, tuning_pb2.PromptInit),
    (softprompt.DistillationResult, tuning_pb2.DistillationResult),
    (softprompt.Distillation, tuning_pb2.Distillation),
    (softprompt.NearestToken, tuning_pb2.NearestToken),
    (softprompt.PublishGate, tuning_pb2.PublishGate),
    (softprompt.PublishPolicy, tuning_pb2.PublishPolicy),
    (softprompt.SearchCandidate, tuning_pb2.SearchCandidate),
    (softprompt.ServiceInfo, tuning_pb2.GetServiceInfoResponse),
    (softprompt.Webhook, tuning_pb2.Webhook),
    (softprompt.DeadLetter, tuning_pb2.DeadLetter),
    (softprompt.StoredDataset, tuning_pb2.Dataset),
    (softprompt.TuningError, tuning_pb2.TuningError),
    (softprompt.TuningJob, tuning_pb2.TuningJob),
    (softprompt.TuningLimits, tuning_pb2.TuningLimits),
    (softprompt.TuningProgress, tuning_pb2.TuningProgress),
    (softprompt.TuningResult, tuning_pb2.TuningResult),
    (softprompt.TuningSpec, tuning_pb2.TuningSpec),
    (softprompt.UploadedDataset, tuning_pb2.UploadDatasetResponse),
]
ENUMS = [(softprompt.FinishReason, generation_pb2.FinishReason, "FINISH_REASON_")]  # the others: tests/shared/wire


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
    hyperparameters = softprompt.Hyperparameters(
        num_virtual_tokens=8,
        init=softprompt.Init(softprompt.InitMethod.TEXT, "hello"),
        reparameterisation=softprompt.Reparameterisation.NONE,
        learning_rate=0.003,
        schedule=softprompt.LearningRateSchedule.LINEAR,
        early_stop_patience=0,
        balance_classes=False,
        class_weights={"a": 0.5},
        seed=0,
    )
    message = write(hyperparameters, tuning_pb2.Hyperparameters())
    assert message.HasField("seed")
    assert not message.HasField("num_steps")
    assert read(softprompt.Hyperparameters, message) == hyperparameters


def test_sampling_survives_both_ways() -> None:
    sampling = softprompt.Sampling(
        temperature=0.0, stop_sequences=("a", "b"), stop_token_ids=(3,), ignore_eos=False, seed=2**40
    )
    assert read(softprompt.Sampling, write(sampling, common_pb2.SamplingParams())) == sampling


def test_a_spec_survives_but_for_its_files() -> None:
    given = softprompt.TuningSpec(
        prompt="tone",
        dataset="datasets/sha256-00",
        validation_dataset="file:///data/held.jsonl",
        template=softprompt.Template("Q: {input}", softprompt.TemplateFormat.CHAT, "be kind"),
        task=softprompt.TaskKind.CHAT,
        labels=("a", "b"),
        hyperparameters=softprompt.Hyperparameters(num_steps=3),
        publish=softprompt.PublishPolicy(
            "canary", softprompt.PublishGate(beat_current=True, minimum_metric=0.5), wait_until_served_seconds=2.5
        ),
        priority=-3,
        max_runtime_seconds=1.5,
        sampling_defaults=softprompt.Sampling(temperature=0.5),
        annotations={"team": "shop"},
    )
    message = write(given, tuning_pb2.TuningSpec(), "spec")
    assert message.dataset.dataset == "datasets/sha256-00"
    assert message.validation_dataset.uri == "file:///data/held.jsonl"
    assert read(softprompt.TuningSpec, message) == given


def test_a_fraction_and_a_file_exclude_each_other() -> None:
    given = softprompt.TuningSpec(
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
    loaded = read(softprompt.LoadedPrompt, message)
    assert loaded.load_time == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert loaded.publish_to_served_seconds == 0.25
    assert loaded.state is softprompt.LoadedState.LOADED


@pytest.mark.parametrize(
    ("value", "field"),
    [
        (softprompt.Hyperparameters(num_steps="many"), "num_steps"),  # type: ignore[arg-type]
        (softprompt.Hyperparameters(num_virtual_tokens=2**40), "num_virtual_tokens"),
        (softprompt.Hyperparameters(metric="nonsense"), "metric"),  # type: ignore[arg-type]
        (softprompt.Hyperparameters(init=softprompt.Init(text=7)), "init.text"),  # type: ignore[arg-type]
    ],
)
def test_a_value_that_does_not_fit_names_its_field(value: object, field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        write(value, tuning_pb2.Hyperparameters())
    assert [violation.field for violation in caught.value.violations] == [field]


def test_one_text_is_no_list_of_stop_sequences() -> None:
    with pytest.raises(InvalidInput, match="stop_sequences"):
        write(softprompt.Sampling(stop_sequences="stop"), common_pb2.SamplingParams())  # type: ignore[arg-type]
