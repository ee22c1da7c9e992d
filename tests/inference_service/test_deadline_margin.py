"""The end of an answer reaches its caller before the deadline, also where everything takes longer than usual."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from prompttuning.v1 import generation_pb2

from inference_service.deadline_margin import HALF_LIFE_SECONDS, DeadlineMargin
from shared.errors import DeadlineExceeded
from tests.clock import Clock
from tests.inference_service.conftest import Brake
from tests.inference_service.replica import Replica, stream_request


def test_on_an_idle_machine_it_is_small() -> None:
    margin = DeadlineMargin(Clock(100.0))
    assert margin.seconds(30.0) == 0.25
    assert margin.seconds(1.0) == pytest.approx(0.1)


def test_it_grows_with_the_worst_recent_delay_and_shrinks_again() -> None:
    clock = Clock(100.0)
    margin = DeadlineMargin(clock)
    margin.ended(clock.now - 1.0)
    margin.ended(clock.now - 0.1)
    assert margin.seconds(30.0) == pytest.approx(2.25)
    clock.now += HALF_LIFE_SECONDS
    assert margin.seconds(30.0) == pytest.approx(1.25)
    margin.ended(clock.now + 5)
    clock.now += 20 * HALF_LIFE_SECONDS
    assert margin.seconds(30.0) == pytest.approx(0.25, abs=1e-3)


def test_half_of_the_time_stays_for_the_answer() -> None:
    clock = Clock(100.0)
    margin = DeadlineMargin(clock)
    margin.note(60.0)
    assert margin.seconds(10.0) == 5.0
    assert margin.seconds(0.0) == 0.0


async def test_a_busy_event_loop_is_noticed_before_an_answer_is_late() -> None:
    clock = Clock(100.0)
    margin = DeadlineMargin(clock)
    watching = asyncio.create_task(margin.watch())
    await asyncio.sleep(0)
    clock.now += 1.1  # the loop comes back a second after what was due
    while margin.seconds(30.0) <= 0.25:
        await asyncio.sleep(0.01)
    watching.cancel()
    assert margin.seconds(30.0) == pytest.approx(2.25)


@pytest.mark.parametrize("error", [asyncio.CancelledError(), DeadlineExceeded("no token was ready")])
def test_an_answer_without_an_end_counts(error: BaseException) -> None:
    clock = Clock(100.0)
    margin = DeadlineMargin(clock)
    with pytest.raises(type(error)), margin.answering(clock.now + 1):
        raise error  # its caller gave up before the deadline
    with pytest.raises(type(error)), margin.answering(None):
        raise error
    assert margin.seconds(30.0) == 0.25
    with pytest.raises(type(error)), margin.answering(clock.now - 1):
        raise error
    assert margin.seconds(30.0) == pytest.approx(2.25)


async def test_after_late_ends_the_next_ones_arrive(replica: Replica, brake: Brake) -> None:
    await replica.generate()
    # Steps end after 3.6 and 4.5 s. The margin of an idle machine, 0.25 s, makes the later one the last.
    brake.seconds = 0.9
    request = stream_request(max_new_tokens=400, ignore_eos=True)

    async def arrives() -> bool:
        try:
            parts = [part async for part in replica.stub.GenerateStream(request, timeout=4)]
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                return False
            raise
        return parts[-1].end.finish_reason == generation_pb2.FINISH_REASON_DEADLINE

    while not await arrives():  # more than once where other processes make steps longer
        pass
