"""What a job's events say when its prompt is published."""

from __future__ import annotations

import math

from shared.values.results import SearchCandidate, TuningResult
from trainer_service.publish.publication import notes_of


def test_what_the_numbers_do_not_show_is_noted() -> None:
    kept = SearchCandidate(0.1, None, 4)
    assert [note.text for note in notes_of(TuningResult(best_step=0, candidates=(kept,)))] == [
        "training did not improve the version that it started from, which is kept as it is"
    ]
    [note] = notes_of(TuningResult(best_step=4, metrics={"loss": math.nan, "accuracy": 0.5}))
    assert note.text == "loss of the held-out examples is not finite: the model can't compute some of them"
