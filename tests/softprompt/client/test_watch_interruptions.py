"""Watches through what gateways do to streams: statuses of their own, resets, clean ends, silence."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from prompttuning.v1 import common_pb2, prompts_pb2, prompts_pb2_grpc, tuning_pb2, tuning_pb2_grpc

from shared.errors import InvalidInput, SoftPromptError
from shared.values.prompts import Deleted
from softprompt.client import resuming
from softprompt.client.async_client import AsyncClient
from tests.softprompt.fakes import JOB, SUCCEEDED
from tests.tcp_proxy import tcp_proxy

Act = Callable[[Any], Awaitable[None]]


def heartbeat(acts: list[Act]) -> common_pb2.Heartbeat:
    """Its interval is short only before a silence that the client is to notice."""
    return common_pb2.Heartbeat(interval=Duration(nanos=50_000_000) if is_silent in acts else Duration(seconds=600))


class Gateway(tuning_pb2_grpc.TuningServiceServicer, prompts_pb2_grpc.PromptServiceServicer):
    """Two events or changes in all; after the first one `acts` happens, one act for each call."""

    def __init__(self, *acts: Act) -> None:
        self.acts = list(acts)
        self.asked_after: list[int] = []

    async def WatchTuningJob(self, request: Any, context: Any) -> AsyncIterator[tuning_pb2.WatchTuningJobResponse]:
        self.asked_after.append(request.after)
        if request.after < 1:
            yield tuning_pb2.WatchTuningJobResponse(event=tuning_pb2.TuningEvent(number=1, note="queued"))
        beat = tuning_pb2.TuningEvent(number=1, heartbeat=heartbeat(self.acts))
        yield tuning_pb2.WatchTuningJobResponse(event=beat)
        if self.acts:
            await self.acts.pop(0)(context)
            return
        last = tuning_pb2.TuningJob(name=JOB, state=SUCCEEDED, last_event=2)
        yield tuning_pb2.WatchTuningJobResponse(event=tuning_pb2.TuningEvent(number=2, state_changed=last))

    async def GetTuningJob(self, request: Any, context: Any) -> tuning_pb2.GetTuningJobResponse:
        return tuning_pb2.GetTuningJobResponse(
            job=tuning_pb2.TuningJob(name=JOB, state=tuning_pb2.TuningJob.STATE_QUEUED)
        )

    async def ListPrompts(self, request: Any, context: Any) -> prompts_pb2.ListPromptsResponse:
        return prompts_pb2.ListPromptsResponse()

    async def WatchPrompts(self, request: Any, context: Any) -> AsyncIterator[prompts_pb2.WatchPromptsResponse]:
        self.asked_after.append(request.after_revision)
        for revision in (1, 2):
            if revision > request.after_revision:
                yield prompts_pb2.WatchPromptsResponse(
                    revision=revision, store_id="s", deleted_version=f"prompts/a/versions/{revision}"
                )
            yield prompts_pb2.WatchPromptsResponse(revision=revision, store_id="s", heartbeat=heartbeat(self.acts))
            if self.acts:
                await self.acts.pop(0)(context)
                return


@asynccontextmanager
async def client_of(gateway: Gateway) -> AsyncIterator[AsyncClient]:
    server = grpc.aio.server()
    tuning_pb2_grpc.add_TuningServiceServicer_to_server(gateway, server)
    prompts_pb2_grpc.add_PromptServiceServicer_to_server(gateway, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with AsyncClient(f"127.0.0.1:{port}") as client:
            yield client
    finally:
        await server.stop(0)


def ends_with(code: grpc.StatusCode) -> Act:
    async def act(context: Any) -> None:
        await context.abort(code, "stream idle timeout")

    return act


async def ends_well(context: Any) -> None:
    """As a gateway that reached its longest time for a stream."""


async def is_silent(context: Any) -> None:
    await asyncio.Event().wait()


async def is_held(context: Any) -> None:
    """The same to a client that expects no heartbeat soon."""
    await asyncio.Event().wait()


ACTS = {code.name: ends_with(code) for code in sorted(resuming.INTERRUPTIONS, key=lambda code: code.name)}


@pytest.mark.parametrize("act", [*ACTS.values(), ends_well, is_silent], ids=[*ACTS, "OK", "silence"])
async def test_a_watch_of_a_job_goes_on_after_the_last_event(act: Act) -> None:
    gateway = Gateway(act, act)
    async with client_of(gateway) as client:
        assert [event.number async for event in client.watch_job(JOB)] == [1, 2]
    assert gateway.asked_after == [0, 1, 1]


@pytest.mark.parametrize("act", [*ACTS.values(), ends_well, is_silent], ids=[*ACTS, "OK", "silence"])
async def test_a_watch_of_prompts_goes_on_after_the_last_change(act: Act) -> None:
    gateway, seen = Gateway(act, act), []
    async with client_of(gateway) as client:
        async for change in client.watch_prompts(after_revision=0):
            assert isinstance(change, Deleted)
            seen.append(change.version)
            if len(seen) == 2:
                break
    assert seen == ["prompts/a/versions/1", "prompts/a/versions/2"], "none twice, and no heartbeat"


async def test_what_only_the_caller_can_mend_ends_the_watch_at_once() -> None:
    gateway = Gateway(ends_with(grpc.StatusCode.INVALID_ARGUMENT))
    async with client_of(gateway) as client:
        with pytest.raises(InvalidInput):
            [event async for event in client.watch_job(JOB)]
    assert len(gateway.asked_after) == 1


async def test_a_failure_that_lasts_is_raised_in_the_end() -> None:
    gateway = Gateway()

    async def fail(request: Any, context: Any) -> AsyncIterator[tuning_pb2.WatchTuningJobResponse]:
        await context.abort(grpc.StatusCode.INTERNAL, "broken")
        yield tuning_pb2.WatchTuningJobResponse()

    gateway.WatchTuningJob = fail  # type: ignore[method-assign]
    async with client_of(gateway) as client:
        with pytest.raises(SoftPromptError, match="broken"):
            [event async for event in client.watch_job(JOB, reconnect_seconds=0.1)]


async def test_a_cancelled_watch_ends() -> None:
    gateway = Gateway(is_held)
    async with client_of(gateway) as client:

        async def watch() -> None:
            async for _ in client.watch_job(JOB):
                begun.set()

        begun = asyncio.Event()
        task = asyncio.create_task(watch())
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_every_pause_has_full_jitter_and_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    bounds: list[float] = []

    def uniform(low: float, high: float) -> float:
        assert low == 0
        bounds.append(high)
        return 0.0

    monkeypatch.setattr("random.uniform", uniform)
    contact = resuming.Contact(60)
    for _ in range(7):
        await contact.pause()
    assert bounds == [0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    contact.heard()
    await contact.pause()
    assert bounds[-1] == 0.2


@pytest.mark.parametrize("reset", [True, False], ids=["reset", "closed"])
async def test_a_connection_that_is_cut_is_made_anew(reset: bool) -> None:
    gateway = Gateway(is_held)
    server = grpc.aio.server()
    tuning_pb2_grpc.add_TuningServiceServicer_to_server(gateway, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    with tcp_proxy(port) as proxy:
        async with AsyncClient(f"127.0.0.1:{proxy.port}") as client:
            numbers = []
            async for event in client.watch_job(JOB):
                numbers.append(event.number)
                if event.number == 1:
                    proxy.cut(reset=reset)
            assert numbers == [1, 2]
            assert proxy.num_connections > 1
    await server.stop(0)
