"""Guided answers of an engine."""

from __future__ import annotations

from typing import Any

from inference_service.engine.core.request import Delta, GenerationRequest
from inference_service.engine.engine import Engine
from inference_service.engine.guide.compiler import GuideCompiler
from shared.values.guide import Guide
from shared.values.sampling import SamplingParams
from tests.inference_service.engine.builders import drain

IDS = (7, 8, 9, 10, 11)


def params(guide: Guide | None, **given: Any) -> SamplingParams:
    return SamplingParams(**{"temperature": 1.0, "seed": 3, "max_new_tokens": 200, "guide": guide, **given})


def answer(engine: Engine, compiler: GuideCompiler, guide: Guide, lead: str = "", **given: Any) -> Delta:
    engine.submit(GenerationRequest("one", IDS, params(guide, **given), guide=compiler.compile(guide, lead)))
    return drain(engine)["one"]


SUMS = Guide(grammar='start: term ("+" term)*\nterm: NUMBER | "(" start ")"\nNUMBER: /[1-9][0-9]{0,2}/')
