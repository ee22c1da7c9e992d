"""Which events of an attempt the watchers of its job get: each step and each evaluation once, and notes."""

from __future__ import annotations

import math
from dataclasses import replace

from shared.values.results import EncodingStatistics, TuningProgress
from trainer_service.dispatch.progress import AttemptProgress
from trainer_service.jobs.model import Checkpoint, Evaluation, EventPayload, Note
from trainer_service.training.events import (
    Checkpointed,
    Evaluated,
    Finished,
    Judging,
    Preparing,
    Started,
    StepDone,
    TrainingEvent,
    TrainingResult,
)

STATISTICS = EncodingStatistics(num_train=4, num_validation=4)


def payloads_of(*events: TrainingEvent, progress_seconds: float = 10.0) -> list[EventPayload]:
    tracker = AttemptProgress(1, TuningProgress(), progress_seconds)
    return [payload for number, event in enumerate(events) for payload in tracker.absorb(event, 100.0 + number)]


def step(number: int, loss: float = 0.5, skipped: int = 0, total_skipped: int = 0) -> StepDone:
    return StepDone("job", 1, number, 4, loss, 0.1, 0.01, 2, 20, 0.01, skipped, total_skipped)


def test_loss_and_metrics_of_the_last_step_are_reported_once() -> None:
    end = Finished("job", 1, TrainingResult.__new__(TrainingResult))
    payloads = payloads_of(*map(step, (1, 2, 3, 4)), Evaluated("job", 1, 4, {"loss": 0.4}, is_best=True), end)
    steps = [payload.step for payload in payloads if isinstance(payload, TuningProgress)]
    assert len(steps) == len(set(steps)) == 2, "the first and the last: the others are within ten seconds"
    assert [payload.metrics for payload in payloads if isinstance(payload, Evaluation)] == [{"loss": 0.4}]
    assert [payload.metrics for payload in payloads if isinstance(payload, TuningProgress)] == [{}, {}]


def test_a_step_whose_state_is_stored_twice_is_reported_once() -> None:
    stored = [Checkpointed("job", 1, number, b"state") for number in (2, 2, 4, 4)]
    assert payloads_of(*stored) == [Checkpoint(step=2), Checkpoint(step=4)]


def test_counts_of_examples_are_reported_until_the_first_step() -> None:
    preparing = [Preparing("job", 1, number, 40_000) for number in (0, 16_384)]
    started = Started("job", 1, EncodingStatistics(num_train=36_000, num_validation=4_000), 0)
    payloads = payloads_of(*preparing, started, step(1), progress_seconds=0.0)
    counted = [(one.num_prepared, one.num_examples) for one in payloads if isinstance(one, TuningProgress)]
    assert counted == [(0, 40_000), (16_384, 40_000), (0, 0)]


def test_the_estimated_end_includes_the_evaluations_and_says_what_the_last_one_does() -> None:
    last = replace(step(4), evaluation_seconds=600.0)
    judging = [Judging("job", 1, number, 5, 100.0 * (5 - number)) for number in (0, 5)]
    found = [one for one in payloads_of(last, *judging) if isinstance(one, TuningProgress)]
    ends = [one.estimated_end_time.timestamp() for one in found if one.estimated_end_time is not None]
    assert ends == [700.0, 101.0 + 500.0, 102.0]
    assert [(one.num_measured, one.num_models) for one in found] == [(0, 0), (0, 5), (5, 5)]
    tracker = AttemptProgress(2, found[-1], 0.0)
    tracker.absorb(Started("job", 2, STATISTICS, 2), 0.0)
    assert not tracker.progress.num_models, "a later attempt trains again"


def test_an_evaluation_brings_the_step_that_was_held_back() -> None:
    payloads = payloads_of(
        step(1),
        step(2),
        Evaluated("job", 1, 2, {"loss": 0.4}, is_best=False),
        step(3),
        Evaluated("job", 1, 3, {}, is_best=False),
    )
    assert [payload.step for payload in payloads if isinstance(payload, TuningProgress | Evaluation)] == [1, 2, 2, 3, 3]


def test_a_skipped_step_keeps_the_last_finite_loss_and_is_reported_once() -> None:
    tracker = AttemptProgress(1, TuningProgress(), 0.0)
    payloads = [tracker.absorb(event, 0) for event in (step(1), step(2, math.nan, 1, 1), step(3, math.nan, 1, 2))]
    notes = [payload.text for some in payloads for payload in some if isinstance(payload, Note)]
    assert notes == ["step 2 was skipped: its loss or gradient is not finite; further ones are counted"]
    assert (tracker.progress.step, tracker.progress.train_loss, tracker.progress.num_skipped_steps) == (3, 0.5, 2)


def test_the_reason_why_training_starts_again_is_reported() -> None:
    statistics = EncodingStatistics(num_train=2, num_validation=1)
    (note,) = payloads_of(Started("job", 2, statistics, 0, restart_reason="the checkpoint can't be read"))
    assert isinstance(note, Note)
    assert (
        note.text == "its checkpoint can't be used, so training starts again from step 0: the checkpoint can't be read"
    )
    assert payloads_of(Started("job", 2, statistics, 7, notes=("few",))) == [Note(text="resumes from step 7")]
    assert payloads_of(Started("job", 1, statistics, 0, notes=("few",))) == [Note(text="few")]


def test_no_loss_is_reported_before_a_step_has_one() -> None:
    """Not 0, which would be a perfect one."""
    tracker = AttemptProgress(1, TuningProgress(), 0.0)
    tracker.absorb(step(1, math.nan, 1, 1), 0)
    assert math.isnan(tracker.progress.train_loss)
    tracker.absorb(step(2), 0)
    assert tracker.progress.train_loss == 0.5


def test_steps_are_reported_after_the_clock_was_set_back() -> None:
    tracker = AttemptProgress(1, TuningProgress(), 10.0)
    counts = [len(tracker.absorb(step(number), now)) for number, now in ((1, 10_000.0), (2, 10_001.0), (3, 500.0))]
    assert counts == [1, 0, 1]
