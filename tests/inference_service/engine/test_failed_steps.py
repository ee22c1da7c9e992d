"""Steps and texts that fail end only the request that caused them."""

from __future__ import annotations

import math

import pytest
import torch

from inference_service.engine.core.plan import StepPlan
from inference_service.engine.core.request import Delta, FinishReason, GenerationRequest
from inference_service.engine.engine import MAX_FAILED_STEPS, Engine
from inference_service.engine.kv.prefix_cache import PrefixCache
from tests.inference_service.engine.builders import IDS, drain, greedy, run_one


def test_one_request_without_finite_logits_does_not_touch_its_neighbours(engine: Engine) -> None:
    expected = run_one(engine, IDS, greedy(12), "a").token_ids
    table = engine.base.embedding_table
    keep = table[77].clone()
    with torch.no_grad():
        table[77] = math.nan
    engine.submit(GenerationRequest("good", IDS, greedy(12), "a"))
    engine.submit(GenerationRequest("bad", (77, 78), greedy(12)))
    found = drain(engine)
    with torch.no_grad():
        table[77] = keep
    assert found["bad"].finish_reason is FinishReason.ERROR
    assert found["bad"].error
    assert found["good"].token_ids == expected
    for i in range(4):  # every row is used again, the bad one's among them
        engine.submit(GenerationRequest(f"again{i}", IDS, greedy(12), "a"))
    assert {delta.token_ids for delta in drain(engine).values()} == {expected}


def fail_for(engine: Engine, monkeypatch: pytest.MonkeyPatch, *request_ids: str) -> list[int]:
    """Steps that carry one of these requests raise; returns the sizes of the steps that were tried."""
    run, sizes = engine.runner.run, []

    def flaky(plan: StepPlan, prefixes: PrefixCache) -> torch.Tensor:
        sizes.append(len(plan.chunks))
        if any(chunk.sequence.request_id in request_ids for chunk in plan.chunks):
            raise RuntimeError("no kernel for this shape")
        return run(plan, prefixes)

    monkeypatch.setattr(engine.runner, "run", flaky)
    return sizes


def test_a_step_that_raises_fails_only_the_request_that_caused_it(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = {f"r{i}": (*IDS, 50 + i) for i in range(6)}
    expected = {name: run_one(engine, ids, greedy(12), "a").token_ids for name, ids in inputs.items()}
    fail_for(engine, monkeypatch, "r2")
    for name, ids in inputs.items():
        engine.submit(GenerationRequest(name, ids, greedy(12), "a"))
    found = drain(engine)
    assert found["r2"].finish_reason is FinishReason.INTERNAL
    assert "kernel" not in found["r2"].error, "the cause is for the log"
    assert {name: delta.token_ids for name, delta in found.items() if name != "r2"} == {
        name: tokens for name, tokens in expected.items() if name != "r2"
    }
    assert not engine.broken


def test_a_copied_beginning_is_computed_again_after_a_failed_step(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    beginning = tuple(range(100, 120))
    expected = run_one(engine, (*beginning, 7), greedy(8), "a").token_ids
    engine.submit(GenerationRequest("source", (*beginning, 9), greedy(30), "a"))
    engine.step()
    fail_for(engine, monkeypatch, "bad")
    engine.submit(GenerationRequest("copy", (*beginning, 7), greedy(8), "a"))
    engine.submit(GenerationRequest("bad", IDS, greedy(8)))
    engine.step()
    assert engine.stats().preemptions == 1
    assert drain(engine)["copy"].token_ids == expected


def test_text_that_cannot_be_made_ends_its_request_alone(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine.submit(GenerationRequest("good", IDS, greedy(5)))
    engine.submit(GenerationRequest("bad", IDS, greedy(5)))

    def refuse(*args: object) -> Delta:
        raise UnicodeError("a tokenizer's own bug")

    monkeypatch.setattr(engine.live.streams["bad"], "push", refuse)
    monkeypatch.setattr(engine.live.streams["bad"], "_rest", refuse)
    found = drain(engine)
    assert (found["bad"].finish_reason, found["good"].finish_reason) == (FinishReason.INTERNAL, FinishReason.LENGTH)


def test_step_after_step_that_fails_means_broken_and_one_success_means_not(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_for(engine, monkeypatch, *(f"bad{i}" for i in range(9)))
    for i in range(MAX_FAILED_STEPS - 1):
        assert run_bad(engine, i) is FinishReason.INTERNAL
    run_one(engine, IDS, greedy(2))
    for i in range(MAX_FAILED_STEPS):
        assert not engine.broken
        run_bad(engine, i)
    assert engine.broken


def run_bad(engine: Engine, index: int) -> FinishReason | None:
    engine.submit(GenerationRequest(f"bad{index}", IDS, greedy(2)))
    return drain(engine)[f"bad{index}"].finish_reason
