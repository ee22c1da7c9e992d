"""Results convert to their messages and to the JSON of the job store, field by field."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any

import pytest
from prompttuning.v1 import common_pb2, tuning_pb2
from pydantic import ValidationError

from shared.values.enums import InitMethod
from shared.values.results import (
    Comparison,
    DatasetStatistics,
    NearestToken,
    SearchCandidate,
    TuningError,
    TuningProgress,
    TuningResult,
)
from shared.wire.mirror import read, write
from trainer_service.jobs.stored_json import from_json, to_json

COMPARISON = Comparison("bare_model", "loss", 1.0, math.inf, 1.0, low=0.5, num_examples=12, beats=True)
CANDIDATE = SearchCandidate(0.1, InitMethod.TEXT, 7, {"loss": 1.5}, True, "worse", (2.0, 1.75))
VALUES: list[tuple[Any, Any]] = [
    (COMPARISON, common_pb2.Comparison),
    (CANDIDATE, tuning_pb2.SearchCandidate),
    (NearestToken("a", 0.5), tuning_pb2.NearestToken),
    (TuningError("BAD_DATA", "no", "spec.dataset"), tuning_pb2.TuningError),
    (DatasetStatistics(1, 2, 3, 4, 5.0, 6, 7.0, 8, 9, 10, 11, 12, 13), tuning_pb2.DatasetStatistics),
    (
        TuningProgress(3, 9, math.inf, 0.5, 0.1, {"loss": math.inf}, 2, 4.0, datetime(2026, 1, 2, tzinfo=UTC), 1, 0, 0),
        tuning_pb2.TuningProgress,
    ),
    (
        TuningResult(
            True,
            "prompts/a/versions/1",
            metrics={"loss": 0.5},
            nearest_tokens=(NearestToken("b", 1.0),),
            served_by_all=False,
            comparisons=(COMPARISON,),
            metric_low=0.0,
            candidates=(CANDIDATE,),
        ),
        tuning_pb2.TuningResult,
    ),
]


@pytest.mark.parametrize(("value", "message"), VALUES, ids=lambda item: type(item).__name__)
def test_a_value_survives_the_wire_and_the_store(value: Any, message: Any) -> None:
    assert read(type(value), write(value, message())) == value
    assert from_json(type(value), to_json(value)) == value


def test_json_of_earlier_releases_can_be_read_and_other_fields_are_refused() -> None:
    text = '{"step":0,"num_steps":0,"train_loss":Infinity,"metrics":{"loss":NaN}}'
    progress = from_json(TuningProgress, text)
    assert progress.train_loss == math.inf
    assert math.isnan(progress.metrics["loss"])
    assert '"train_loss":Infinity' in to_json(progress)
    with pytest.raises(ValidationError, match="speed"):
        from_json(TuningProgress, '{"speed": 1}')
