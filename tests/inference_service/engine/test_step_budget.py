"""No forward pass carries more positions than a step may have, whatever is requested; chunks give the numbers that one
pass gives.
"""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
import torch

from inference_service.engine import build as engine_build
from inference_service.engine.async_engine import AsyncEngine
from inference_service.engine.core.request import FinishReason, GenerationRequest, ScoreRequest, ScoreResult
from inference_service.engine.engine import Engine
from shared.errors import DamagedBlob, Overloaded, PreconditionFailed, Unavailable
from shared.prompt.soft_prompt import SoftPrompt
from tests.inference_service.engine.builders import (
    drain,
    greedy,
    reference,
    run_one,
    small_config,
    soft_prompt,
    tiny_base,
)
from tests.inference_service.engine.test_correctness import random_input

IDS = tuple(range(20, 30))
LONG = (tuple(5 + (7 * i) % 250 for i in range(90)), (9, 8, 7), tuple(5 + (11 * i) % 250 for i in range(61)))
KINDS = [("llama", False), ("mistral", False), ("falcon", False), ("llama", True), ("gemma2", True)]


def watch(engine: Engine) -> list[int]:
    """Positions and wanted logits of each forward pass, whichever runner makes it."""
    sizes: list[int] = []
    forward = engine.base.model.forward

    def watched(*args: Any, **kwargs: Any) -> Any:
        inputs = kwargs.get("input_ids")
        sizes.append((kwargs["inputs_embeds"] if inputs is None else inputs).shape[1])
        return forward(*args, **kwargs)

    engine.base.model.forward = watched
    return sizes


def build(kind: str = "llama", *, paged: bool = False, **config: Any) -> Engine:
    return Engine.from_base_model(
        tiny_base(kind), small_config(paged=paged, max_length=256, kv_cache_bytes=1 << 24, **config)
    )


def score(engine: Engine, *, beside: bool = False) -> ScoreResult:
    engine.submit(ScoreRequest("s", IDS, LONG, "a"))
    if beside:
        engine.submit(GenerationRequest("beside", (9, 9, 9), greedy(40), "a"))
    found = []
    while engine.has_work:
        found += [output.score for output in engine.step() if output.score is not None]
        engine.check_integrity()
    (result,) = found
    return result


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_build, "BLOCK_TOKENS", 8)


@pytest.mark.parametrize(("kind", "paged"), KINDS)
@pytest.mark.parametrize("budget", [16, 7])
def test_a_candidate_in_chunks_scores_like_one_in_one_pass(kind: str, paged: bool, budget: int) -> None:
    values = []
    for max_tokens_per_step in (256, budget):
        engine = build(kind, paged=paged, max_tokens_per_step=max_tokens_per_step)
        sizes = watch(engine)
        engine.load_prefix("a", soft_prompt(engine.base, 30))
        result = score(engine, beside=max_tokens_per_step == budget)
        assert max(sizes) <= max_tokens_per_step
        assert result.usage.generated_tokens == 0
        values.append([value for item in result.scores for value in item.logprobs])
    assert len(values[0]) == sum(map(len, LONG))
    assert values[1] == pytest.approx(values[0], abs=2e-4)


@pytest.mark.parametrize(("kind", "paged"), [*KINDS, ("gpt2", False), ("opt", True), ("bloom", False)])
def test_a_soft_prompt_in_chunks_gives_what_generate_gives(kind: str, paged: bool) -> None:
    base = tiny_base(kind)
    prompt = soft_prompt(base, 40)
    expected = reference(base, prompt, IDS, 12)
    engine = Engine.from_base_model(base, small_config(paged=paged, max_tokens_per_step=9))
    sizes = watch(engine)
    engine.load_prefix("a", prompt)
    assert max(sizes) <= 9
    chunked = engine.prefixes.get("a")
    assert run_one(engine, IDS, greedy(12), "a").token_ids == expected
    engine.prefixes._drop_kv(engine.prefixes._prefixes["a"])
    engine.scheduler.pool.forget_all()
    assert run_one(engine, IDS, greedy(12), "a").token_ids == expected, "computed again in the request's own row"
    again = engine.prefixes.get("a")
    for one, other in zip((*chunked.keys, *chunked.values), (*again.keys, *again.values), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
    assert max(sizes) <= 9


@pytest.mark.parametrize("paged", [False, True])
def test_prompts_above_the_prefix_budget_never_stop_a_stream(paged: bool) -> None:
    engine = build(paged=paged, max_tokens_per_step=16, max_running=3, prefix_kv_bytes=1)
    prompts = {f"p{i}": soft_prompt(engine.base, 40, seed=i + 1) for i in range(6)}
    for name, prompt in prompts.items():
        engine.load_prefix(name, prompt)
    assert engine.stats().prefixes_loaded == 1, "waiting requests and known prompts hold no memory"
    engine.submit(GenerationRequest("stream", IDS, greedy(100), tenant="mine"))
    engine.step()
    sizes = watch(engine)
    for i, name in enumerate(prompts):
        engine.submit(
            GenerationRequest(f"r{i}", random_input(random.Random(i), 5, 20), greedy(3), name, tenant="greedy")
        )
    got = 0
    while engine.scheduler.waiting or len(engine.scheduler.running) > 1:
        outputs = engine.step()
        assert "stream" in {output.request_id for output in outputs}, "a token in each step"
        got += 1
        engine.check_integrity()
    assert got > 8
    assert max(sizes) <= 16
    drain(engine)


async def test_a_load_runs_beside_a_stream_and_says_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = AsyncEngine(build(max_tokens_per_step=8))
    subject.start()
    base, steps = subject.engine.base, watch(subject.engine)
    stream = subject.generate(GenerationRequest("stream", IDS, greedy(200), tenant="mine"))
    await anext(stream)
    await asyncio.gather(*(subject.load_prefix(name, soft_prompt(base, 60)) for name in ("a", "a", "b")))
    assert max(steps) <= 8
    assert subject.engine.prefixes.num_computed == 2, "two loads of one prompt compute it once"
    assert len(await subject.top_logprobs("a", IDS, 3)) == 3
    with pytest.raises(PreconditionFailed, match="leave no room"):
        await subject.load_prefix("long", soft_prompt(base, 255))
    with pytest.raises(PreconditionFailed, match="hidden size"):
        await subject.load_prefix("wide", SoftPrompt(torch.zeros(3, 65)))
    await stream.aclose()  # type: ignore[attr-defined]
    monkeypatch.setattr(subject.engine, "step", list)  # computes nothing
    loading = asyncio.create_task(subject.load_prefix("c", soft_prompt(base, 200)))
    await asyncio.sleep(0)
    await subject.stop()
    with pytest.raises(Unavailable):
        await loading
    subject.engine.check_integrity()


def test_a_prompt_that_is_not_finite_here_ends_its_load_alone() -> None:
    base = tiny_base(dtype=torch.bfloat16)
    subject = Engine.from_base_model(base, small_config(max_tokens_per_step=3))
    base.model.model.layers[1].input_layernorm.forward = lambda x: torch.full_like(x, 3e38)
    with pytest.raises(DamagedBlob):
        subject.load_prefix("bad", SoftPrompt(torch.ones(8, 64)))
    assert "bad" not in subject.prefixes
    subject.check_integrity()


def test_outputs_that_come_while_a_load_is_stepped_are_not_lost() -> None:
    engine = build(max_tokens_per_step=8)
    engine.submit(GenerationRequest("r", IDS, greedy(5)))
    engine.load_prefix("a", soft_prompt(engine.base, 100))
    assert len(drain(engine)["r"].token_ids) == 5


def test_one_tenant_cannot_fill_the_queue_against_another() -> None:
    engine = build(max_waiting=4, max_waiting_tokens=1000, max_running=1)

    def submit(tenant: str, number: int) -> None:
        engine.submit(GenerationRequest(f"{tenant}{number}", IDS, greedy(2), tenant=tenant))

    for number in range(4):
        submit("many", number)
    with pytest.raises(Overloaded, match=r"at most 4 requests may wait, and 4 of your tenant's do"):
        submit("many", 4)
    submit("few", 0)
    submit("few", 1)
    with pytest.raises(Overloaded, match="2 of your tenant's do"):
        submit("few", 2)
    submit("third", 0)
    assert {delta.finish_reason for delta in drain(engine).values()} == {FinishReason.LENGTH}


def test_nor_in_tokens_and_candidates_count() -> None:
    engine = build(max_waiting_tokens=200, max_running=1)
    engine.load_prefix("a", soft_prompt(engine.base, 30))
    engine.submit(ScoreRequest("s0", IDS, LONG, "a", tenant="many"))
    with pytest.raises(Overloaded, match="tokens"):
        engine.submit(ScoreRequest("s1", IDS, LONG, "a", tenant="many"))
    engine.submit(GenerationRequest("r", IDS, greedy(2), tenant="few"))
    with pytest.raises(Overloaded):
        engine.submit(ScoreRequest("s2", IDS, LONG * 3, "a", tenant="third"))
    drain(engine)


@pytest.mark.parametrize("paged", [False, True])
def test_preempted_answers_are_the_same(paged: bool) -> None:
    base = tiny_base()
    inputs = {f"r{i}": random_input(random.Random(i), 5, 20) for i in range(6)}
    expected = {name: reference(base, None, ids, 60) for name, ids in inputs.items()}
    engine = Engine.from_base_model(base, small_config(paged=paged, max_running=2))
    for name, ids in list(inputs.items())[:3]:
        engine.submit(GenerationRequest(name, ids, greedy(60), tenant="a"))
    deltas: dict[str, list[int]] = {}
    for step in range(2000):
        if step == 5:
            engine.submit(GenerationRequest("r3", inputs["r3"], greedy(60), priority=5, tenant="a"))
            engine.submit(GenerationRequest("r4", inputs["r4"], greedy(60), tenant="b"))
            engine.submit(GenerationRequest("r5", inputs["r5"], greedy(60), tenant="c"))
        if not engine.has_work:
            break
        for output in engine.step():
            deltas.setdefault(output.request_id, []).extend(output.delta.token_ids)
        engine.check_integrity()
    assert engine.stats().preemptions > 0
    assert {name: tuple(tokens) for name, tokens in deltas.items()} == expected
