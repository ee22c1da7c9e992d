"""A running replica over the tiny model, and a brake on its engine."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from inference_service.engine.engine import Engine
from tests.inference_service.replica import Replica, running_replica


@pytest.fixture
async def replica(tiny_model_dir: Path, tmp_path: Path) -> AsyncIterator[Replica]:
    async with running_replica(tiny_model_dir, tmp_path) as running:
        yield running


class Brake:
    """While it is on, every step with work takes a while longer, so that a test can act in the middle of an answer."""

    def __init__(self) -> None:
        self.seconds = 0.0


@pytest.fixture
def brake(monkeypatch: pytest.MonkeyPatch) -> Brake:
    brake, step = Brake(), Engine.step

    def slowly(self: Engine) -> object:
        if self.has_work:
            time.sleep(brake.seconds)
        return step(self)

    monkeypatch.setattr(Engine, "step", slowly)
    return brake
