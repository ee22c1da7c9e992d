"""Estimates the time of a run's remaining evaluations from the completed ones. Rough: it only counts examples."""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import TypeVar

from trainer_service.training.evaluation.answers import TEXT_SHARE
from trainer_service.training.work import Work

_WRITTEN_ROWS, _WRITING = 32, 4.0
"""At least two batches of answers are written; each answer takes about as long as scoring it this many times."""
_Measured = TypeVar("_Measured")


class EvaluationTime:
    """The wall time per example of one model's measurement."""

    def __init__(self) -> None:
        self._per_example = 0.0

    def timed(
        self, measuring: Generator[Work, object, _Measured], num_examples: int
    ) -> Generator[Work, object, _Measured]:
        """Yields the same work, and records its time in place of the previous measurement's."""
        started = time.perf_counter()
        measured = yield from measuring
        self._per_example = (time.perf_counter() - started) / max(1, num_examples)
        return measured

    def seconds(self, num_examples: int) -> float:
        """Estimated seconds to measure a model on this number of examples; 0 before the first measurement."""
        return self._per_example * num_examples

    def writing_seconds(self, train_seconds: float) -> float:
        """Estimated seconds to write answers after this time of training steps (`held_out_answers`)."""
        return max(TEXT_SHARE * train_seconds, _WRITTEN_ROWS * _WRITING * self._per_example)
