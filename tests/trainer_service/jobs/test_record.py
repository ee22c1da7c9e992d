from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

from shared.values.results import TuningError
from tests.trainer_service.builders import record
from trainer_service.jobs.record import changed_columns, to_row
from trainer_service.jobs.states import JobState


def test_a_row_with_the_changed_columns_is_that_of_the_later_record() -> None:
    before = record()
    error = TuningError(code="NAN_LOSS", message="the loss is not a number", field="")
    ended = before.with_job(state=JobState.FAILED, error=error, end_time=datetime(2026, 1, 1, tzinfo=UTC))
    after = replace(ended, exclusive=True, lease_until=5.0)
    changed = changed_columns(before, after)
    assert to_row(before) | changed == to_row(after)
    assert changed.keys() == {"state", "error", "end_time", "solo", "lease_until"}
    assert changed_columns(after, after) == {}
