"""Every enum of the protocol that has a table converts both ways."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import pytest
from prompttuning.v1 import common_pb2, generation_pb2, tuning_pb2

from shared.values import enums
from shared.values.enums import TaskKind
from shared.values.generation import FinishReason
from shared.violations import Violations
from shared.wire.enums import enum_number, enum_reader

KINDS = {
    tuning_pb2.TaskKind.DESCRIPTOR: enums.TaskKind,
    tuning_pb2.TooLong.DESCRIPTOR: enums.TooLong,
    tuning_pb2.PromptInit.Method.DESCRIPTOR: enums.InitMethod,
    tuning_pb2.Reparameterisation.DESCRIPTOR: enums.Reparameterisation,
    tuning_pb2.PrefixKind.DESCRIPTOR: enums.PrefixKind,
    tuning_pb2.LearningRateSchedule.DESCRIPTOR: enums.LearningRateSchedule,
    tuning_pb2.Metric.DESCRIPTOR: enums.Metric,
    tuning_pb2.TuningJob.State.DESCRIPTOR: enums.JobState,
    tuning_pb2.ListTuningJobsRequest.Order.DESCRIPTOR: enums.JobOrder,
    common_pb2.Template.Format.DESCRIPTOR: enums.TemplateFormat,
    generation_pb2.LoadedPrompt.State.DESCRIPTOR: enums.LoadedState,
    generation_pb2.FinishReason.DESCRIPTOR: FinishReason,
}


@pytest.mark.parametrize(("enum", "kind"), KINDS.items(), ids=[kind.__name__ for kind in KINDS.values()])
def test_every_value_survives_both_ways(enum: Any, kind: type[StrEnum]) -> None:
    read_one, violations = enum_reader(enum, kind), Violations()
    numbers = [value.number for value in enum.values if value.number]
    assert len(numbers) > 1
    read = [read_one(number, "field", violations) for number in numbers]
    assert read == [*kind]
    assert [enum_number(enum, value) for value in read if value is not None] == numbers
    assert read_one(0, "field", violations) is None
    assert not violations
    assert read_one(4711, "field", None) is None
    assert read_one(4711, "field", violations) is None
    assert violations


def test_a_table_that_is_not_total_is_refused() -> None:
    fewer = StrEnum("fewer", [(kind.name, kind.value) for kind in list(TaskKind)[1:]])  # type: ignore[misc]
    more = StrEnum("more", [*((kind.name, kind.value) for kind in TaskKind), ("RANKING", "RANKING")])  # type: ignore[misc]
    for kind, lonely in ((fewer, "GENERATION"), (more, "RANKING")):
        with pytest.raises(ValueError, match=lonely):
            enum_reader(tuning_pb2.TaskKind.DESCRIPTOR, kind)


def test_a_name_may_be_in_lower_case() -> None:
    assert enum_number(tuning_pb2.TaskKind.DESCRIPTOR, "chat") == tuning_pb2.TASK_KIND_CHAT
    with pytest.raises(ValueError, match="GENERATION, CHAT, CLASSIFICATION"):
        enum_number(tuning_pb2.TaskKind.DESCRIPTOR, "poetry")
