"""Completions of one input share its computation; log-probabilities of the input are the model's own."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from inference_service.engine.core.request import Delta, FinishReason, GenerationRequest, ScoreRequest
from inference_service.engine.engine import Engine
from shared.errors import Overloaded
from shared.values.sampling import SamplingParams
from tests.inference_service.engine.builders import Positions, drain, run_one, small_config, soft_prompt, tiny_base

IDS = tuple(range(20, 70))


def completions(num: int, ids: tuple[int, ...] = IDS, prefix_id: str | None = None, **given: Any) -> list[Any]:
    defaults = {"temperature": 1.0, "max_new_tokens": 5, "ignore_eos": True}
    params = SamplingParams(**{**defaults, **given})
    return [
        GenerationRequest(f"c{index}", ids, replace(params, seed=7 + index), prefix_id, group="c0")
        for index in range(num)
    ]


@pytest.mark.parametrize("reuse", [True, False])
@pytest.mark.parametrize("paged", [False, True])
@pytest.mark.parametrize("ids", [IDS, (30,), (30, 31, 32)])
def test_the_input_is_computed_once(paged: bool, reuse: bool, ids: tuple[int, ...]) -> None:
    base = tiny_base()
    engine = Engine.from_base_model(
        base, small_config(paged=paged, text_reuse="tenant" if reuse else "off", max_tokens_per_step=16, max_running=4)
    )
    engine.load_prefix("p", soft_prompt(base))
    alone = [run_one(engine, ids, request.sampling, "p").token_ids for request in completions(4)]
    fresh = Engine.from_base_model(
        base := tiny_base(),
        small_config(paged=paged, text_reuse="tenant" if reuse else "off", max_tokens_per_step=16, max_running=4),
    )
    fresh.load_prefix("p", soft_prompt(base))
    fresh.live.observer = counting = Positions()
    fresh.submit(*completions(4, ids, "p"))
    found = drain(fresh)
    assert [found[f"c{index}"].token_ids for index in range(4)] == alone
    assert len(set(alone)) > 1
    # The input, the last token of it for each further completion, and 4 tokens of each answer that are fed.
    assert counting.num_positions == len(ids) + 3 + 4 * 4


def test_more_completions_than_rows_follow_one_another(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine.from_base_model(tiny_base(), small_config(max_running=2))
    engine.submit(*completions(7))
    found = drain(engine)
    assert len(found) == 7
    assert all(delta.finish_reason is FinishReason.LENGTH for delta in found.values())


def test_they_go_on_without_the_first_one_and_when_it_is_cancelled_early() -> None:
    engine = Engine.from_base_model(tiny_base(), small_config(max_tokens_per_step=16))
    engine.submit(*completions(3))
    engine.step()
    engine.cancel("c0")
    found = drain(engine)
    assert {found["c1"].finish_reason, found["c2"].finish_reason} == {FinishReason.LENGTH}
    engine.submit(*completions(3))
    for name in ("c0", "c1", "c2"):
        engine.cancel(name)
    assert not engine.has_work
    engine.check_integrity()


def test_all_are_queued_or_none() -> None:
    engine = Engine.from_base_model(tiny_base(), small_config(max_waiting=4))
    engine.submit(*completions(6))  # one input is always taken if nothing waits
    others = [replace(request, request_id=f"d{i}", group="d0") for i, request in enumerate(completions(3))]
    with pytest.raises(Overloaded):
        engine.submit(*others)
    assert set(drain(engine)) == {f"c{index}" for index in range(6)}


def input_logprobs(engine: Engine, ids: tuple[int, ...], prefix_id: str | None, **given: Any) -> Delta:
    sampling = SamplingParams(temperature=0.0, max_new_tokens=3, ignore_eos=True, num_input_logprobs=2, **given)
    return run_one(engine, ids, sampling, prefix_id)


@pytest.mark.parametrize("kind", ["llama", "bloom"])
@pytest.mark.parametrize("prefix_id", [None, "p"])
def test_log_probabilities_of_the_input_are_the_model_s_own(kind: str, prefix_id: str | None) -> None:
    base = tiny_base(kind)
    prompt = soft_prompt(base)
    embeds = base.model.get_input_embeddings()(torch.tensor(IDS))
    if prefix_id is not None:
        embeds = torch.cat([prompt.cast(base.dtype), embeds])
    with torch.inference_mode():
        logits = base.model(inputs_embeds=embeds[None]).logits[0][-len(IDS) :]
    expected = torch.log_softmax(logits[:-1].float(), dim=-1)
    engine = Engine.from_base_model(base, small_config(max_tokens_per_step=16))
    engine.load_prefix("p", prompt)
    for _ in range(2):  # the second time, the keys and values of the same input are there and not used
        found = input_logprobs(engine, IDS, prefix_id)
        assert [item.token_id for item in found.input_logprobs] == list(IDS[1:])
        for place, item in enumerate(found.input_logprobs):
            assert item.logprob == pytest.approx(float(expected[place, IDS[place + 1]]), abs=2e-3)
            assert [token for token, _ in item.top] == expected[place].topk(2).indices.tolist()
        plain = run_one(engine, IDS, SamplingParams(temperature=0.0, max_new_tokens=3, ignore_eos=True), prefix_id)
        assert found.token_ids == plain.token_ids
        assert plain.input_logprobs == ()


def test_a_step_scores_no_more_input_positions_than_its_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inference_service.engine.scheduler.MAX_SCORED_POSITIONS", 8)
    engine = Engine.from_base_model(tiny_base(), small_config(max_tokens_per_step=64))
    whole = input_logprobs(Engine.from_base_model(tiny_base(), small_config()), IDS, None).input_logprobs
    score = ScoreRequest("score", (9, 8, 7), ((5, 6, 7), (8, 9)))
    engine.submit(score)
    for name in ("a", "b"):
        sampling = SamplingParams(temperature=0.0, max_new_tokens=2, ignore_eos=True, num_input_logprobs=2)
        engine.submit(GenerationRequest(name, IDS, sampling))
    found = drain(engine)
    for name in ("a", "b"):
        assert [item.token_id for item in found[name].input_logprobs] == [item.token_id for item in whole]
        for one, other in zip(found[name].input_logprobs, whole, strict=True):
            assert one.logprob == pytest.approx(other.logprob, abs=1e-4)


def test_a_preempted_input_is_scored_once() -> None:
    engine = Engine.from_base_model(tiny_base(), small_config(max_running=1, max_tokens_per_step=16))
    sampling = SamplingParams(temperature=0.0, max_new_tokens=2, ignore_eos=True, num_input_logprobs=0)
    engine.submit(GenerationRequest("low", IDS, sampling))
    outputs = [engine.step(), engine.step()]
    engine.submit(GenerationRequest("high", (8, 9), SamplingParams(max_new_tokens=2, ignore_eos=True), priority=5))
    assert not any(outputs)
    found = drain(engine)
    assert engine.stats().preemptions == 1
    assert [item.token_id for item in found["low"].input_logprobs] == list(IDS[1:])
    assert all(math.isfinite(item.logprob) for item in found["low"].input_logprobs)


def test_an_input_of_one_token_has_no_log_probability() -> None:
    found = input_logprobs(Engine.from_base_model(tiny_base(), small_config()), (30,), None)
    assert (found.input_logprobs, len(found.token_ids)) == ((), 3)
