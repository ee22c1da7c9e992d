"""A running replica over the tiny model, and a brake on its engine."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from inference_service.engine.core.running_request import RunningRequest
from inference_service.engine.engine import Engine
from tests.inference_service.replica import Replica, running_replica

LONG_ANSWER = 40
"""Tokens from which on a brake can hold an answer."""


@pytest.fixture
async def replica(tiny_model_dir: Path, tmp_path: Path) -> AsyncIterator[Replica]:
    async with running_replica(tiny_model_dir, tmp_path) as running:
        yield running


class Brake:
    """Lets a test act in the middle of an answer, however slow the machine is."""

    def __init__(self) -> None:
        self.seconds = 0.0
        """Every step with work takes so much longer."""
        self.holds = False
        """Whether long answers that have begun stand still while there is nothing else to compute. Short answers,
        scores and loads are computed, and each of their steps takes the long ones one token further.
        """

    def stops(self, engine: Engine) -> bool:
        """Whether the engine is to compute nothing now."""
        running, waiting = engine.scheduler.running, engine.scheduler.waiting
        is_full = len(running) == engine.config.max_running
        has_begun = all(sequence.num_generated for sequence in running) and (is_full or not waiting)
        return self.holds and has_begun and all(map(_is_long, [*running, *waiting]))


def _is_long(sequence: RunningRequest) -> bool:
    is_answer = not (sequence.is_load or sequence.is_score)
    return is_answer and sequence.sampling.max_new_tokens >= LONG_ANSWER


@pytest.fixture
def brake(monkeypatch: pytest.MonkeyPatch) -> Brake:
    brake, step = Brake(), Engine.step

    def slowly(self: Engine) -> object:
        if not self.has_work:
            return step(self)
        is_stopped = brake.stops(self)
        time.sleep(0.01 if is_stopped else brake.seconds)
        return [] if is_stopped else step(self)

    monkeypatch.setattr(Engine, "step", slowly)
    return brake
