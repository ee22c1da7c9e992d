"""The engine's thread and its asyncio face: streams, cancellation, back-pressure, stopping, dying."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
import torch

from inference_service.engine.async_engine import AsyncEngine
from inference_service.engine.core.plan import StepPlan
from inference_service.engine.core.request import Delta, FinishReason, GenerationRequest, ScoreRequest
from inference_service.engine.engine import MAX_FAILED_STEPS, Engine
from inference_service.engine.kv.prefix_cache import PrefixCache
from inference_service.engine.run.bisect_failure import StepFailed
from inference_service.engine.text.text_stream import merge
from shared.errors import AlreadyExists, InvalidInput, NotFound, Overloaded, Unavailable
from tests.inference_service.conftest import Brake
from tests.inference_service.engine.builders import greedy, reference, small_config, soft_prompt, tiny_base
from tests.waiting import until

IDS = (40, 41, 42, 43)


def build(**config: Any) -> AsyncEngine:
    return AsyncEngine(Engine.from_base_model(tiny_base(), small_config(**config)))


@pytest_asyncio.fixture
async def engine() -> AsyncIterator[AsyncEngine]:
    subject = build()
    subject.start()
    await subject.load_prefix("a", soft_prompt(subject.engine.base))
    yield subject
    await subject.check_integrity()
    assert subject.engine.prefixes.num_holds == 0
    await subject.stop()


async def collect(engine: AsyncEngine, request: GenerationRequest) -> Delta:
    return merge([delta async for delta in engine.generate(request)])


async def merge_rest(stream: AsyncIterator[Delta]) -> Delta:
    return merge([delta async for delta in stream])


async def test_many_streams_at_once_equal_generate(engine: AsyncEngine) -> None:
    twin = tiny_base()
    expected = reference(twin, soft_prompt(twin), IDS, 16)
    found = await asyncio.gather(
        *(collect(engine, GenerationRequest(f"r{i}", IDS, greedy(16), "a")) for i in range(12))
    )
    assert {delta.token_ids for delta in found} == {expected}
    assert all(delta.usage is not None and delta.usage.generated_tokens == 16 for delta in found)


async def test_the_first_delta_tells_about_the_request(engine: AsyncEngine) -> None:
    deltas = [delta async for delta in engine.generate(GenerationRequest("r", IDS, greedy(30), "a"))]
    first, last = deltas[0], deltas[-1]
    assert first.usage is not None
    assert (first.usage.input_tokens, first.usage.virtual_tokens) == (4, 7)
    assert first.seed == last.seed is not None
    assert last.finish_reason is FinishReason.LENGTH
    assert last.timing is not None
    assert all(delta.finish_reason is None for delta in deltas[:-1])


async def test_closing_a_stream_frees_its_slot(engine: AsyncEngine) -> None:
    stream = engine.generate(GenerationRequest("r", IDS, greedy(110), "a"))
    await anext(stream)
    await stream.aclose()  # type: ignore[attr-defined]
    await engine.check_integrity()
    assert not engine.engine.has_work


async def test_cancelling_the_task_of_a_waiting_request_frees_it(engine: AsyncEngine, brake: Brake) -> None:
    brake.holds = True
    tasks = [asyncio.create_task(collect(engine, GenerationRequest(f"r{i}", IDS, greedy(110), "a"))) for i in range(8)]
    await until(lambda: engine.stats().running == 4)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await engine.check_integrity()
    assert not engine.engine.has_work


async def test_a_reader_that_sleeps_gets_everything_in_one_delta(engine: AsyncEngine) -> None:
    stream = engine.generate(GenerationRequest("slow", IDS, greedy(60), "a"))
    first = await anext(stream)
    await until(lambda: not engine.engine.has_work)
    await asyncio.sleep(0)
    rest = [delta async for delta in stream]
    assert len(rest) <= 2
    assert len(merge([first, *rest]).token_ids) == 60


async def test_refusals_come_before_the_first_delta(engine: AsyncEngine) -> None:
    for request, error in (
        (GenerationRequest("x", (), greedy()), InvalidInput),
        (GenerationRequest("x", IDS, greedy(0)), InvalidInput),
        (GenerationRequest("x", IDS, greedy(), "nobody"), NotFound),
    ):
        with pytest.raises(error):
            await collect(engine, request)
    stream = engine.generate(GenerationRequest("twice", IDS, greedy(100)))
    await anext(stream)
    with pytest.raises(AlreadyExists):
        await collect(engine, GenerationRequest("twice", IDS, greedy()))
    await stream.aclose()  # type: ignore[attr-defined]


async def test_overload_is_refused_and_the_rest_served(brake: Brake) -> None:
    subject, brake.holds = build(max_waiting=2, max_running=1), True
    subject.start()
    tasks = [asyncio.create_task(collect(subject, GenerationRequest(f"r{i}", IDS, greedy(40)))) for i in range(12)]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    brake.holds = False
    results = await asyncio.gather(*tasks, return_exceptions=True)
    refused = [result for result in results if isinstance(result, Overloaded)]
    served = [result for result in results if isinstance(result, Delta)]
    assert len(refused) + len(served) == 12
    assert refused
    assert served
    await subject.check_integrity()
    await subject.stop()


async def test_score_and_replay(engine: AsyncEngine) -> None:
    result = await engine.score(ScoreRequest("s", IDS, ((5,), (6, 7)), "a"))
    assert sum(score.probability for score in result.scores) == pytest.approx(1.0)
    top = await engine.top_logprobs("a", IDS, 3)
    assert len(top) == 3
    assert top == sorted(top, key=lambda pair: -pair[1])
    assert top != await engine.top_logprobs(None, IDS, 3), "the prompt must make a difference"


async def test_stopping_lets_streams_finish_and_takes_no_more(brake: Brake) -> None:
    subject, brake.holds = build(), True
    subject.start()
    task = asyncio.create_task(collect(subject, GenerationRequest("r", IDS, greedy(40))))
    await until(lambda: subject.stats().running == 1)
    stopping = asyncio.create_task(subject.stop(600))
    await asyncio.sleep(0)
    with pytest.raises(Unavailable):
        await collect(subject, GenerationRequest("late", IDS, greedy()))
    brake.holds = False
    await stopping
    assert len((await task).token_ids) == 40
    assert not subject.healthy


async def test_the_end_of_the_grace_time_cancels(brake: Brake) -> None:
    subject, brake.holds = build(max_running=1), True
    subject.start()
    tasks = [asyncio.create_task(collect(subject, GenerationRequest(f"r{i}", IDS, greedy(120)))) for i in range(9)]
    await until(lambda: subject.stats().running == 1)
    await subject.stop(0)
    reasons = {(await task).finish_reason for task in tasks}
    assert FinishReason.CANCELLED in reasons
    assert not subject.engine.has_work


async def test_when_the_thread_dies_no_caller_hangs(monkeypatch: pytest.MonkeyPatch, brake: Brake) -> None:
    subject, brake.holds = build(), True
    subject.start()
    assert subject.healthy
    stream = subject.generate(GenerationRequest("r", IDS, greedy(120)))
    await anext(stream)

    def die() -> None:
        raise MemoryError("no more")

    monkeypatch.setattr(subject.engine, "step", die)
    with pytest.raises(Unavailable, match="MemoryError"):
        await merge_rest(stream)
    assert not subject.healthy
    with pytest.raises(Unavailable):
        await collect(subject, GenerationRequest("next", IDS, greedy()))
    with pytest.raises(Unavailable):
        await subject.load_prefix("b", soft_prompt(subject.engine.base))
    await subject.stop()


async def test_a_step_that_raises_is_an_internal_error_of_its_requests_alone(
    engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch, brake: Brake
) -> None:
    run, brake.holds = engine.engine.runner.run, True

    def flaky(plan: StepPlan, prefixes: PrefixCache) -> torch.Tensor:
        if any(chunk.sequence.request_id.startswith("bad") for chunk in plan.chunks):
            raise MemoryError("one row too many")
        return run(plan, prefixes)

    monkeypatch.setattr(engine.engine.runner, "run", flaky)
    good = asyncio.create_task(collect(engine, GenerationRequest("good", IDS, greedy(60), "a")))
    await until(lambda: engine.stats().running == 1)
    bad = await collect(engine, GenerationRequest("bad", IDS, greedy(5), "a"))
    assert bad.finish_reason is FinishReason.INTERNAL
    with pytest.raises(StepFailed):
        await engine.score(ScoreRequest("bad score", IDS, ((5,), (6, 7)), "a"))
    brake.holds = False
    assert len((await good).token_ids) == 60
    assert engine.healthy


async def test_failing_step_after_step_makes_the_engine_unhealthy(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = build()
    subject.start()

    def fail(*args: object) -> torch.Tensor:
        raise RuntimeError("the device is gone")

    monkeypatch.setattr(subject.engine.runner, "run", fail)
    for i in range(MAX_FAILED_STEPS):
        assert (
            await collect(subject, GenerationRequest(f"r{i}", IDS, greedy(5)))
        ).finish_reason is FinishReason.INTERNAL
    await until(lambda: not subject.healthy)
    with pytest.raises(Unavailable):
        await collect(subject, GenerationRequest("late", IDS, greedy(5)))
    await subject.stop()


async def test_a_replay_passes_a_full_queue(brake: Brake) -> None:
    subject, brake.holds = build(max_waiting=1, max_running=1), True
    subject.start()
    await subject.load_prefix("a", soft_prompt(subject.engine.base))
    running = asyncio.create_task(collect(subject, GenerationRequest("r0", IDS, greedy(100), "a")))
    await until(lambda: subject.stats().running == 1)
    waiting = asyncio.create_task(collect(subject, GenerationRequest("r1", IDS, greedy(40), "a")))
    await until(lambda: subject.stats().waiting == 1)
    with pytest.raises(Overloaded):
        await collect(subject, GenerationRequest("r2", IDS, greedy(5), "a"))
    assert len(await subject.top_logprobs("a", IDS, 3, priority=9)) == 3
    brake.holds = False
    await asyncio.gather(running, waiting)
    await subject.check_integrity()
    await subject.stop()


async def test_what_no_submit_expects_reaches_the_caller_and_not_the_thread(
    engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def surprise(request: object) -> None:
        raise TypeError("unexpected")

    with monkeypatch.context() as patched:
        patched.setattr(engine.engine.admission, "check", surprise)
        with pytest.raises(TypeError):
            await collect(engine, GenerationRequest("r", IDS, greedy(5)))
    assert len((await collect(engine, GenerationRequest("r", IDS, greedy(5)))).token_ids) == 5


async def test_books_that_do_not_balance_are_found_when_the_engine_falls_idle() -> None:
    subject = build()
    subject.start()
    await subject.load_prefix("a", soft_prompt(subject.engine.base))
    subject.engine.prefixes.num_bytes += 1
    assert len((await collect(subject, GenerationRequest("r", IDS, greedy(5), "a"))).token_ids) == 5
    await until(lambda: not subject.healthy)
    with pytest.raises(Unavailable, match="IntegrityError"):
        await collect(subject, GenerationRequest("late", IDS, greedy(2)))
    await subject.stop()
