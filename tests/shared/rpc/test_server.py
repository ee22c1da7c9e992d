"""The server's plumbing over a real socket: errors, health, reflection, metrics, request ids, cancel, drain."""

from __future__ import annotations

import asyncio
import gc
import urllib.request
from collections.abc import AsyncIterator
from contextlib import suppress
from types import AsyncGeneratorType
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from prometheus_client import CollectorRegistry
from prompttuning.v1 import generation_pb2

from shared.errors import InvalidInput
from shared.rpc.errors import error_from_rpc
from shared.rpc.metrics import serve_metrics
from tests.raw_http2 import framed, raw_call
from tests.shared.rpc.service import SERVICE, Running, count_request, running_server
from tests.waiting import until


@pytest.fixture
async def running() -> AsyncIterator[Running]:
    async with running_server() as made:
        yield made


def handled(registry: CollectorRegistry, method: str, code: str, kind: str) -> float:
    labels = {"grpc_type": kind, "grpc_service": SERVICE, "grpc_method": method, "grpc_code": code}
    return registry.get_sample_value("grpc_server_handled_total", labels) or 0.0


async def test_domain_errors_arrive_as_domain_errors(running: Running) -> None:
    assert (await running.stub.CountTokens(count_request("good"))).input_tokens == 1
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await running.stub.CountTokens(count_request("bad"))
    error = error_from_rpc(caught.value)
    assert isinstance(error, InvalidInput)
    assert error.violations[0].field == "input.text"
    # a call is counted when it is over, and its caller may know before
    codes = ("OK", "INVALID_ARGUMENT")
    await until(lambda: all(handled(running.registry, "CountTokens", code, "unary") == 1 for code in codes))


async def test_a_bug_shows_nothing_of_itself(running: Running) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await running.stub.CountTokens(count_request("bug"))
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert "secret" not in (caught.value.details() or "")


@pytest.mark.parametrize("body", [b"\x0a\x05\x12\x03\xff\xfe\x41", b"\xff\xff\xff"], ids=["bad UTF-8", "no message"])
@pytest.mark.parametrize("method", ["CountTokens", "GenerateStream"])
async def test_bytes_that_are_no_message_are_the_callers_error(running: Running, method: str, body: bytes) -> None:
    if method == "CountTokens":
        answer: Any = running.channel.unary_unary(f"/{SERVICE}/{method}")(body)
    else:
        answer = running.channel.unary_stream(f"/{SERVICE}/{method}")(body).read()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await answer
    error = error_from_rpc(caught.value)
    assert isinstance(error, InvalidInput)
    assert error.violations[0].field == "request"


async def test_a_client_that_leaves_closes_its_handler(running: Running) -> None:
    call = running.stub.GenerateStream(generation_pb2.GenerateStreamRequest())
    assert (await call.read()).delta.text == "first"
    call.cancel()
    await running.servicer.closed.wait()
    await until(lambda: handled(running.registry, "GenerateStream", "CANCELLED", "server_stream"))


async def test_a_passed_deadline_closes_the_handler(running: Running) -> None:
    seconds = 0.1
    while not running.servicer.closed.is_set():  # until a call's handler has begun before its deadline
        call = running.stub.GenerateStream(generation_pb2.GenerateStreamRequest(), timeout=seconds)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in call:
                pass
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        seconds *= 2


async def test_drain_lets_a_stream_finish(running: Running) -> None:
    call = running.stub.GenerateStream(generation_pb2.GenerateStreamRequest())
    assert (await call.read()).delta.text == "first"
    await running.servicer.running.wait()
    await running.server.set_serving(True)
    watch = health_pb2_grpc.HealthStub(running.channel).Watch(health_pb2.HealthCheckRequest())
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
    drain = asyncio.create_task(running.server.drain(3600))
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
    while (code := await running.stub.CountTokens(count_request("good")).code()) is grpc.StatusCode.OK:
        await asyncio.sleep(0)  # watchers of health have time to leave
    assert code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED), "a draining server takes nothing new"
    assert not drain.done()
    running.servicer.release.set()
    assert (await call.read()).delta.text == "last"
    assert await call.read() is grpc.aio.EOF
    await drain


async def test_drain_does_not_wait_for_a_health_watch(running: Running) -> None:
    watch = health_pb2_grpc.HealthStub(running.channel).Watch(health_pb2.HealthCheckRequest())
    await watch.read()
    await running.server.drain(3600)


@pytest.mark.parametrize("port", ["main", "health"])
async def test_a_health_watch_that_is_not_read_delays_nothing(port: str) -> None:
    """Anyone may watch health; a client that doesn't read must not keep the server from changing its status or
    stopping.
    """
    async with running_server(health_port=0) as running:
        number = running.port if port == "main" else running.server.health_port
        assert number is not None
        async with grpc.aio.insecure_channel(f"127.0.0.1:{number}") as channel:
            health, ready = health_pb2_grpc.HealthStub(channel), health_pb2.HealthCheckRequest(service="ready")
            reader = health.Watch(ready)
            assert (await reader.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
            async with raw_call(number, "/grpc.health.v1.Health/Watch", window_bytes=0) as unread:
                await unread.send(framed(ready.SerializeToString()), is_last=True)
                for _ in range(20):
                    await health.Check(ready)  # the watch has begun meanwhile
                await running.server.set_serving(True)
                assert (await reader.read()).status == health_pb2.HealthCheckResponse.SERVING
                assert (await health.Watch(ready).read()).status == health_pb2.HealthCheckResponse.SERVING
                await running.server.drain(0.1)


async def test_health_tells_live_and_ready_apart(running: Running) -> None:
    health = health_pb2_grpc.HealthStub(running.channel)

    async def status(service: str) -> int:
        return int((await health.Check(health_pb2.HealthCheckRequest(service=service))).status)

    serving, not_serving = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
    assert [await status(name) for name in ("live", "ready", "", SERVICE)] == [
        serving,
        not_serving,
        not_serving,
        not_serving,
    ]
    await running.server.set_serving(True)
    assert [await status(name) for name in ("live", "ready", "", SERVICE)] == [serving] * 4


async def test_reflection_names_the_services(running: Running) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(running.channel)
    responses = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
    names = {service.name async for response in responses for service in response.list_services_response.service}
    assert {SERVICE, "grpc.health.v1.Health"} <= names


async def test_metrics_are_scraped_over_http(running: Running) -> None:
    await running.stub.CountTokens(count_request("good"))
    await until(lambda: handled(running.registry, "CountTokens", "OK", "unary"))
    endpoint = serve_metrics(running.registry, "127.0.0.1", 0)
    try:
        with await asyncio.to_thread(urllib.request.urlopen, f"http://127.0.0.1:{endpoint.port}/metrics") as response:
            text = response.read().decode()
    finally:
        endpoint.close()
    labels = f'grpc_code="OK",grpc_method="CountTokens",grpc_service="{SERVICE}",grpc_type="unary"'
    assert f"grpc_server_handled_total{{{labels}}} 1.0" in text


async def test_a_silent_scraper_is_disconnected(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.rpc.metrics._Handler.timeout", 0.1)
    endpoint = serve_metrics(running.registry, "127.0.0.1", 0)
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", endpoint.port)
        writer.write(b"GET /metr")
        with suppress(ConnectionError):  # closed before it read all
            assert await reader.read() == b""
        writer.close()
    finally:
        await asyncio.to_thread(endpoint.close)


async def test_calls_leave_nothing_for_the_garbage_collector_to_finish(running: Running) -> None:
    """Unfinished generators live until garbage collection, so a replica that refuses many calls would grow."""
    gc.collect()
    before = unfinished_generators()
    gc.disable()
    try:
        for text in ("good", "bad") * 50:
            await running.stub.CountTokens(count_request(text)).code()
        assert unfinished_generators() <= before + 2
    finally:
        gc.enable()


def unfinished_generators() -> int:
    return sum(type(found) is AsyncGeneratorType for found in gc.get_objects())
