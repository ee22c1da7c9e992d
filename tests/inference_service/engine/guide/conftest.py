"""An engine over a tiny random model, and the compiler of its guides."""

from __future__ import annotations

import pytest

from inference_service.engine.engine import Engine
from inference_service.engine.guide.compiler import GuideCompiler
from tests.inference_service.engine.builders import small_config, tiny_base


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.from_base_model(tiny_base(), small_config(max_length=256, max_tokens_per_step=32))


@pytest.fixture(scope="module")
def compiler(engine: Engine) -> GuideCompiler:
    return GuideCompiler(engine.base)
