"""What a request meets in the engine besides its tokens: ends, refusals, cancellation, seeds, prefixes that come and
go.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from inference_service.engine.core.request import Delta, FinishReason, GenerationRequest, ScoreRequest
from inference_service.engine.core.stats import EngineObserver, FinishedRequest, StepStats
from inference_service.engine.engine import Engine
from shared.errors import AlreadyExists, DamagedBlob, InvalidInput, NotFound, Overloaded, PreconditionFailed
from shared.prompt.soft_prompt import SoftPrompt
from shared.values.sampling import SamplingParams
from tests.inference_service.engine.builders import (
    IDS,
    build,
    drain,
    greedy,
    run_one,
    small_config,
    soft_prompt,
    tiny_base,
)


def test_length_eos_and_stop_tokens(engine: Engine) -> None:
    free = run_one(engine, IDS, greedy(10))
    assert free.finish_reason is FinishReason.LENGTH
    assert len(free.token_ids) == 10
    third = free.token_ids[2]
    first_seen = free.token_ids.index(third)
    stopped = run_one(engine, IDS, greedy(10, stop_token_ids=(third,)))
    assert stopped.finish_reason is FinishReason.EOS
    assert stopped.token_ids == free.token_ids[: first_seen + 1]
    later = run_one(engine, IDS, greedy(10, stop_token_ids=(third,), min_new_tokens=10))
    assert len(later.token_ids) == 10
    assert third not in later.token_ids


def test_a_stop_sequence_ends_the_text_before_it(engine: Engine) -> None:
    free = run_one(engine, IDS, greedy(40, repetition_penalty=1.5))
    stop = free.text[5:8]
    assert len(stop) == 3
    stopped = run_one(engine, IDS, greedy(40, repetition_penalty=1.5, stop_sequences=(stop,)))
    assert stopped.finish_reason is FinishReason.STOP_SEQUENCE
    assert stopped.text == free.text[: free.text.index(stop)]


def test_the_context_ends_at_its_limit() -> None:
    subject = build(max_length=32)
    delta = run_one(subject, tuple(range(20, 40)), greedy(100), "a")
    assert delta.finish_reason is FinishReason.LENGTH
    assert len(delta.token_ids) == 32 - 20 - 7


def test_the_same_seed_gives_the_same_text_alone_and_in_company(engine: Engine) -> None:
    def sampling(seed: int) -> SamplingParams:
        return SamplingParams(temperature=1.0, top_p=0.95, seed=seed, max_new_tokens=12, ignore_eos=True)

    alone = [run_one(engine, IDS, sampling(seed), "a").token_ids for seed in range(4)]
    assert len(set(alone)) == 4
    for seed in range(4):
        engine.submit(GenerationRequest(f"s{seed}", IDS, sampling(seed), "a"))
    engine.submit(GenerationRequest("other", (99, 98), greedy(20)))
    together = drain(engine)
    assert [together[f"s{seed}"].token_ids for seed in range(4)] == alone


def test_a_drawn_seed_is_reported_and_repeats_the_text(engine: Engine) -> None:
    drawn = run_one(engine, IDS, SamplingParams(max_new_tokens=8, ignore_eos=True))
    assert drawn.seed is not None
    assert (
        run_one(engine, IDS, SamplingParams(max_new_tokens=8, ignore_eos=True, seed=drawn.seed)).token_ids
        == drawn.token_ids
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1), ("temperature", math.nan), ("temperature", math.inf), ("top_p", 0.0), ("top_p", 1.1),
        ("top_p", math.nan), ("top_k", -1), ("min_p", -0.1), ("min_p", math.nan), ("repetition_penalty", 0.0),
        ("presence_penalty", math.nan), ("frequency_penalty", 1e9), ("max_new_tokens", 0), ("max_new_tokens", 10**9),
        ("min_new_tokens", -1), ("min_new_tokens", 500),
        ("seed", -1), ("seed", 1 << 64), ("num_logprobs", 21), ("stop_sequences", ("x",) * 10_000),
        ("stop_token_ids[0]", -1),
    ],
)  # fmt: skip
def test_sampling_out_of_range_is_named(engine: Engine, field: str, value: object) -> None:
    given: Any = {field.removesuffix("[0]"): (value,) if field.endswith("[0]") else value}
    with pytest.raises(InvalidInput) as caught:
        engine.submit(GenerationRequest("bad", IDS, SamplingParams(**given)))
    assert {violation.field for violation in caught.value.violations} == {f"sampling.{field}"}
    assert not engine.has_work


def test_all_violations_come_at_once() -> None:
    with pytest.raises(InvalidInput) as caught:
        SamplingParams(temperature=-1, top_p=0, stop_sequences=("", "ok", "y" * 300)).check()
    named = [violation.field for violation in caught.value.violations]
    assert named == [
        "sampling.temperature",
        "sampling.top_p",
        "sampling.stop_sequences[0]",
        "sampling.stop_sequences[2]",
    ]


@pytest.mark.parametrize("ids", [(), (5, 261), (-1,), tuple([7] * 128), (9,) * 1_000_000])
def test_inputs_that_can_never_run_are_refused(engine: Engine, ids: tuple[int, ...]) -> None:
    with pytest.raises((InvalidInput, Overloaded)) as caught:
        engine.submit(GenerationRequest("bad", ids, greedy()))
    assert isinstance(caught.value, InvalidInput)
    assert caught.value.violations[0].field == "input_ids"


@pytest.mark.parametrize("candidates", [(), ((),), ((1,), (999,)), ((1,),) * 300, ((5,) * 200,)])
def test_scores_that_can_never_run_are_refused(engine: Engine, candidates: tuple[tuple[int, ...], ...]) -> None:
    with pytest.raises(InvalidInput):
        engine.submit(ScoreRequest("bad", IDS, candidates))


def test_unknown_prompt_and_taken_id(engine: Engine) -> None:
    with pytest.raises(NotFound):
        engine.submit(GenerationRequest("x", IDS, greedy(), "nobody"))
    engine.submit(GenerationRequest("x", IDS, greedy()))
    with pytest.raises(AlreadyExists):
        engine.submit(GenerationRequest("x", IDS, greedy()))
    drain(engine)


def test_a_full_queue_refuses_and_says_when_to_come_back() -> None:
    subject = build(max_waiting=3, max_running=1)
    for i in range(3):
        subject.submit(GenerationRequest(f"r{i}", IDS, greedy(2)))
    with pytest.raises(Overloaded) as caught:
        subject.submit(GenerationRequest("r3", IDS, greedy(2)))
    assert caught.value.retry_after_seconds > 0
    assert len(drain(subject)) == 3
    subject = build(max_waiting_tokens=10)
    subject.submit(GenerationRequest("r0", IDS * 2, greedy(2)))
    with pytest.raises(Overloaded):
        subject.submit(GenerationRequest("r1", IDS, greedy(2)))
    drain(subject)


def test_cancelling_frees_everything_wherever_the_request_is() -> None:
    subject = build(max_running=1)
    for name in ("running", "waiting"):
        subject.submit(GenerationRequest(name, IDS, greedy(50), "a"))
    subject.step()
    for name in ("waiting", "running"):
        output = subject.cancel(name)
        assert output is not None
        assert output.delta.finish_reason is FinishReason.CANCELLED
    assert subject.cancel("running") is None
    assert not subject.has_work
    assert subject.stats().kv_blocks_used == 0
    assert subject.prefixes.num_holds == 0
    subject.check_integrity()


def test_deadlines_end_waiting_and_running_requests() -> None:
    subject = build(max_running=1)
    now = 100.0
    subject.clock = lambda: now
    for name, deadline in (("running", 105.0), ("waiting", 103.0)):
        subject.submit(GenerationRequest(name, IDS, greedy(50), "a", deadline=deadline))
    reasons: dict[str, Delta] = {}
    for now in (101.0, 104.0, 106.0):  # noqa: B007
        reasons |= {o.request_id: o.delta for o in subject.step() if o.delta.finish_reason is not None}
    assert {name: delta.finish_reason for name, delta in reasons.items()} == dict.fromkeys(
        ("waiting", "running"), FinishReason.DEADLINE
    )
    assert reasons["running"].usage is not None
    assert reasons["running"].usage.generated_tokens == 2
    subject.check_integrity()


def test_a_prefix_held_by_a_request_leaves_with_it(engine: Engine) -> None:
    engine.submit(GenerationRequest("r", IDS, greedy(5), "a"))
    assert engine.unload_prefix("a") is False
    with pytest.raises(NotFound):
        engine.submit(GenerationRequest("late", IDS, greedy(5), "a"))
    assert len(drain(engine)["r"].token_ids) == 5
    assert "a" not in engine.prefixes
    assert engine.unload_prefix("a") is True


def test_evicted_prefix_kv_comes_back_on_demand() -> None:
    subject = build(prefix_kv_bytes=20_000)
    base = subject.base
    before = run_one(subject, IDS, greedy(6), "a").token_ids
    for i in range(6):
        subject.load_prefix(f"p{i}", soft_prompt(base, 7, seed=10 + i))
    stats = subject.stats()
    assert subject.prefixes.num_known == 7
    assert stats.prefixes_loaded < 7
    assert stats.prefix_kv_evictions > 0
    subject.scheduler.pool.forget("a")
    assert run_one(subject, IDS, greedy(6), "a").token_ids == before
    assert subject.stats().prefix_kv_loads > stats.prefix_kv_loads
    subject.check_integrity()


def test_loading_again_is_nothing_and_another_matrix_is_refused(engine: Engine) -> None:
    loads = engine.stats().prefix_kv_loads
    engine.load_prefix("a", soft_prompt(engine.base))
    assert engine.stats().prefix_kv_loads == loads
    with pytest.raises(PreconditionFailed):
        engine.load_prefix("a", soft_prompt(engine.base, seed=9))
    with pytest.raises(PreconditionFailed, match="hidden size"):
        engine.load_prefix("wide", SoftPrompt(torch.zeros(3, 65)))


def test_a_prompt_that_overflows_in_the_model_is_refused_and_leaves_no_trace() -> None:
    base = tiny_base(dtype=torch.bfloat16)
    subject = Engine.from_base_model(base, small_config())
    base.model.model.layers[1].input_layernorm.forward = lambda x: torch.full_like(x, 3e38)
    with pytest.raises(DamagedBlob):
        subject.load_prefix("bad", SoftPrompt(torch.ones(4, 64)))
    assert "bad" not in subject.prefixes
    subject.check_integrity()


def test_the_observer_hears_the_whole_story(engine: Engine) -> None:
    class Observer(EngineObserver):
        def __init__(self) -> None:
            self.finished: list[FinishedRequest] = []
            self.steps: list[StepStats] = []

        def on_step(self, step: StepStats) -> None:
            self.steps.append(step)

        def on_finished(self, request: FinishedRequest) -> None:
            self.finished.append(request)

    observer = Observer()
    engine.live.observer = observer
    run_one(engine, IDS, greedy(5), "a")
    (story,) = observer.finished
    assert story.prefix_id == "a"
    assert (story.usage.input_tokens, story.usage.virtual_tokens, story.usage.generated_tokens) == (4, 7, 5)
    assert story.ttft_seconds is not None
    assert 0 <= story.queue_seconds <= story.ttft_seconds <= story.e2e_seconds
    assert len(story.inter_token_seconds) == 4
    assert sum(step.num_positions for step in observer.steps) == 4 + 5 - 1, "each input token, each token but the last"


def test_a_golden_replay_is_taken_by_a_full_queue() -> None:
    subject = build(max_waiting=1, max_running=1)
    subject.submit(GenerationRequest("r0", IDS, greedy(2)))
    with pytest.raises(Overloaded):
        subject.submit(GenerationRequest("r1", IDS, greedy(2)))
    subject.submit(GenerationRequest("replay", IDS, greedy(1), always_admitted=True))
    assert set(drain(subject)) == {"r0", "replay"}
