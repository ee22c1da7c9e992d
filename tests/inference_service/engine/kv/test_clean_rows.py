"""Numbers that are not finite stay with the request that made them, whichever way it ends: its memory is clean for the
next holder.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from inference_service.engine.core.plan import StepPlan
from inference_service.engine.core.request import FinishReason, GenerationRequest, ScoreRequest
from inference_service.engine.engine import Engine
from inference_service.engine.kv.prefix_cache import PrefixCache
from tests.inference_service.engine.builders import drain, greedy, run_one, small_config, soft_prompt, tiny_base

BAD_TOKEN = 77
BAD_INPUT = (BAD_TOKEN, *range(100, 190))
"""Several chunks long; far more than what a window of eight reaches through four layers."""
OTHERS = [tuple(range(first, first + 60)) for first in (10, 12, 190, 195)]
KINDS = [("llama", False), ("llama", True), ("mistral", False), ("mistral", True), ("falcon", False)]


def build(kind: str, paged: bool) -> Engine:
    engine = Engine.from_base_model(tiny_base(kind), small_config(paged=paged, max_tokens_per_step=24, max_running=2))
    engine.load_prefix("a", soft_prompt(engine.base))
    return engine


@contextmanager
def bad_token(engine: Engine) -> Iterator[None]:
    """Within it, one token's embedding is not finite."""
    table = engine.base.embedding_table
    keep = table[BAD_TOKEN].clone()
    with torch.no_grad():
        table[BAD_TOKEN] = math.nan
    try:
        yield
    finally:
        with torch.no_grad():
            table[BAD_TOKEN] = keep


def answers(engine: Engine) -> list[tuple[int, ...]]:
    """Of requests that together use every row and every block."""
    for index, tokens in enumerate([*OTHERS, BAD_INPUT]):
        engine.submit(GenerationRequest(f"other{index}", tokens, greedy(8), "a"))
    found = drain(engine)
    return [found[f"other{index}"].token_ids for index in range(len(OTHERS) + 1)]


def end(engine: Engine, way: str) -> None:
    """End the request `bad` in the middle of its input, if it is there any more."""
    if way == "cancel":
        engine.cancel("bad")
    elif way == "deadline":
        clock = engine.clock
        engine.clock = lambda: clock() + 1e6
        engine.step()
        engine.clock = clock
    elif way == "preempt":
        for sequence in list(engine.scheduler.running):
            engine.scheduler.preempt(sequence)
        engine.cancel("bad")


@pytest.mark.parametrize(("kind", "paged"), KINDS)
@pytest.mark.parametrize("way", ["cancel", "deadline", "preempt", "to its end"])
def test_whichever_way_a_request_ends_its_memory_is_clean(kind: str, paged: bool, way: str) -> None:
    expected = answers(build(kind, paged))
    engine = build(kind, paged)
    for _ in range(3):  # every row
        with bad_token(engine):
            engine.submit(GenerationRequest("bad", BAD_INPUT, greedy(4), "a", deadline=engine.clock() + 1e5))
            engine.step()
            end(engine, way)
            drain(engine)
    assert answers(engine) == expected


@pytest.mark.parametrize("paged", [False, True])
def test_a_request_that_is_not_finite_ends_at_the_first_chunk_that_shows_it(paged: bool) -> None:
    engine = build("llama", paged)
    with bad_token(engine):
        engine.submit(GenerationRequest("bad", BAD_INPUT, greedy(4), "a"))
        (output,) = engine.step()
        assert output.delta.finish_reason is FinishReason.ERROR
        engine.submit(ScoreRequest("score", tuple(range(20, 30)), ((5,), (BAD_TOKEN, 6), (7, BAD_TOKEN, 8)), "a"))
        assert drain(engine)["score"].finish_reason is FinishReason.ERROR
    assert not engine.has_work


@pytest.mark.parametrize("paged", [False, True])
def test_a_step_that_raised_half_way_leaves_nothing(paged: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The step writes numbers that are not finite and then raises: for one request again and again, for those beside it
    once.
    """
    expected = answers(build("llama", paged))
    engine = build("llama", paged)
    run = engine.runner.run

    def flaky(plan: StepPlan, prefixes: PrefixCache) -> torch.Tensor:
        if any(chunk.sequence.request_id == "bad" for chunk in plan.chunks):
            with bad_token(engine):
                run(plan, prefixes)
            raise RuntimeError("no kernel for this shape")
        return run(plan, prefixes)

    monkeypatch.setattr(engine.runner, "run", flaky)
    beginning = tuple(range(20, 40))
    engine.submit(GenerationRequest("source", (*beginning, 5), greedy(30), "a"))
    engine.step()
    engine.submit(GenerationRequest("bad", (*beginning, BAD_TOKEN, 6), greedy(8), "a"))
    engine.step()
    engine.cancel("bad")
    drain(engine)
    monkeypatch.undo()
    assert answers(engine) == expected


def test_a_prefix_that_was_evicted_is_not_counted_among_the_steps_positions() -> None:
    engine = Engine.from_base_model(tiny_base(), small_config(prefix_kv_bytes=1))
    for seed in (1, 2):
        engine.load_prefix(f"p{seed}", soft_prompt(engine.base, 7, seed))
    first = run_one(engine, OTHERS[0], greedy(4), "p1").token_ids
    engine.scheduler.pool.forget_all()
    assert run_one(engine, OTHERS[0], greedy(4), "p1").token_ids == first
