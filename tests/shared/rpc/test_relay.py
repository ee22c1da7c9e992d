"""Relayed calls behave as calls of gRPC: limits, cancellations, deadlines, slow readers, and a relay that breaks."""

from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from prometheus_client import CollectorRegistry
from prompttuning.v1 import generation_pb2, generation_pb2_grpc, relay_pb2, relay_pb2_grpc

from shared.config import ServerSettings
from shared.errors import Unauthenticated, Unavailable
from shared.rpc.errors import error_from_rpc
from shared.rpc.metrics import RpcMetrics
from shared.rpc.relay import _RelayedContext
from shared.rpc.relay_wire import MAX_ACTIONS, MAX_METADATA_BYTES, MAX_REQUEST_BYTES, from_wire
from shared.rpc.server import RpcServer
from shared.security.tokens import hash_token, new_token
from softprompt.routing.directory import Replica
from softprompt.routing.links import SERVICE, STREAMING, Link
from tests.waiting import until

TOKEN = new_token()
AUTHORIZED = (("authorization", f"Bearer {TOKEN}"), ("x-request-id", "one"))


class Words(generation_pb2_grpc.GenerationServiceServicer):
    """Answers with `max_new_tokens` deltas of a thousand bytes; with 0, waits."""

    def __init__(self) -> None:
        self.written = self.cancelled = 0

    async def GenerateStream(self, request: Any, context: Any) -> AsyncIterator[Any]:
        try:
            if not request.sampling.max_new_tokens:
                await asyncio.Event().wait()
            for number in range(request.sampling.max_new_tokens):
                part = generation_pb2.GenerateStreamResponse()
                part.delta.text, self.written = f"{number}".ljust(1000), number
                yield part
        except asyncio.CancelledError:
            self.cancelled += 1
            raise


@asynccontextmanager
async def serving(directory: Path, relays: bool = True) -> AsyncIterator[tuple[RpcServer, Words, Link, Any]]:
    """A server, its servicer, a link to it that has a relay if there is one, and its channel."""
    callers = directory / "callers.json"
    caller = {"name": "shop", "roles": ["generator"], "prompts": ["*"], "token_sha256": [hash_token(TOKEN)]}
    callers.write_text(json.dumps({"callers": [caller]}))
    settings = ServerSettings(callers_file=str(callers), max_message_bytes=1 << 20)
    server, words = RpcServer(settings, ["prompttuning.v1.GenerationService"], RpcMetrics(CollectorRegistry())), Words()
    add = partial(generation_pb2_grpc.add_GenerationServiceServicer_to_server, words)
    add(server.grpc_server)
    if relays:
        server.relay(add)
    port = await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            link = Link(Replica("a", f"127.0.0.1:{port}", "m", "f"), channel)
            link.in_flight = 4
            call = link.call(STREAMING, request(1), None, AUTHORIZED)
            assert isinstance(call, grpc.aio.UnaryStreamCall)  # the link doesn't know yet whether there is a relay
            await read_all(call)
            await until(lambda: (found := link._relays._relay) is not None and (found.is_open or found.is_over))
            yield server, words, link, channel
    finally:
        await server.drain(0)


def request(max_new_tokens: int, text: str = "hi") -> bytes:
    message = generation_pb2.GenerateStreamRequest(input=generation_pb2.GenerationInput(text=text))
    message.sampling.max_new_tokens = max_new_tokens
    return message.SerializeToString()


async def read_all(call: Any) -> list[str]:
    texts = []
    while (data := await call.read()) is not grpc.aio.EOF:
        texts.append(generation_pb2.GenerateStreamResponse.FromString(data).delta.text.strip())
    return texts


async def refused(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await read_all(call)
    return caught.value


def relayed(link: Link, data: bytes, timeout: float | None = None, metadata: Any = AUTHORIZED) -> Any:
    call = link.call(STREAMING, data, timeout, metadata)
    assert not isinstance(call, grpc.aio.UnaryStreamCall)
    return call


async def test_relayed_calls_have_the_answers_and_refusals_of_other_calls(tmp_path: Path) -> None:
    async with serving(tmp_path) as (server, _, link, _):
        answers = await asyncio.gather(*(read_all(relayed(link, request(n))) for n in (1, 7, 300)))
        assert answers == [[str(number) for number in range(n)] for n in (1, 7, 300)]
        assert isinstance(error_from_rpc(await refused(relayed(link, request(1), metadata=()))), Unauthenticated)
        own = link._channel.unary_stream(SERVICE + STREAMING, None, None)
        for data in (b"\xff\xff", request(1, "\x00" * 10)):
            pair = [await end_of(relayed(link, data)), await end_of(own(data, metadata=AUTHORIZED))]
            assert pair[0] == pair[1]
        large = link.call(STREAMING, request(1, "x" * MAX_REQUEST_BYTES), None, AUTHORIZED)
        assert isinstance(large, grpc.aio.UnaryStreamCall)
        assert await read_all(large) == ["0"]
        server.draining.set()
        assert isinstance(error_from_rpc(await refused(relayed(link, request(1)))), Unavailable)


async def end_of(call: Any) -> Any:
    try:
        return await read_all(call)
    except grpc.aio.AioRpcError as error:
        return error.code(), error.details(), str(error_from_rpc(error))


async def test_cancellations_and_deadlines_reach_the_server(tmp_path: Path) -> None:
    async with serving(tmp_path) as (server, words, link, _):
        seconds = 0.1
        while not words.cancelled:  # until a call has reached the server before its deadline
            late = await refused(relayed(link, request(0), timeout=seconds))
            assert late.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            seconds *= 2
        await until(lambda: server._calls.count == 0)
        call, cancelled = relayed(link, request(0)), words.cancelled
        await until(lambda: server._calls.count == 1)
        call.cancel()
        await until(lambda: words.cancelled > cancelled and server._calls.count == 0)
        assert await read_all(relayed(link, request(2))) == ["0", "1"]


async def test_a_caller_that_reads_nothing_stops_its_own_answer_only(tmp_path: Path) -> None:
    async with serving(tmp_path) as (_, _, link, _):
        slow = relayed(link, request(5000))
        await until(lambda: slow._is_paused)
        assert len(await read_all(relayed(link, request(100)))) == 100
        assert slow._unread < 3 << 20
        assert await read_all(slow) == [str(number) for number in range(5000)]


async def test_a_relay_that_breaks_ends_its_calls_and_is_replaced(tmp_path: Path) -> None:
    async with serving(tmp_path) as (server, words, link, _):
        call, broken = relayed(link, request(0)), link._relays._relay
        assert broken is not None
        await until(lambda: server._calls.count == 1)
        broken._call.cancel()
        assert (await refused(call)).code() is grpc.StatusCode.UNAVAILABLE
        await until(lambda: words.cancelled == 1)

        async def has_another() -> bool:
            await read_all(link.call(STREAMING, request(1), None, AUTHORIZED))
            found = link._relays._relay
            return found is not None and found is not broken and found.is_open

        await until(has_another)
        assert await read_all(relayed(link, request(2))) == ["0", "1"]
        held = relayed(link, request(0))
        await until(lambda: server._calls.count == 1)
        await asyncio.gather(server.drain(0.1), refused(held))


async def test_a_replica_without_a_relay_gets_calls_of_their_own(tmp_path: Path) -> None:
    async with serving(tmp_path, relays=False) as (_, _, link, _):
        for _ in range(3):
            call = link.call(STREAMING, request(1), None, AUTHORIZED)
            assert isinstance(call, grpc.aio.UnaryStreamCall)
            assert await read_all(call) == ["0"]
        assert link._relays._relay is None


async def test_an_attacker_learns_and_holds_nothing(tmp_path: Path) -> None:
    def begin(number: int, method: str, data: bytes = b"") -> relay_pb2.RelayAction:
        return relay_pb2.RelayAction(call=number, begin=relay_pb2.RelayBegin(method=method, request=data))

    async with serving(tmp_path) as (server, _, _, channel):
        stub: Any = relay_pb2_grpc.RelayServiceStub(channel)
        call = stub.Relay()
        actions = [
            begin(1, "/prompttuning.v1.RelayService/Relay"),
            begin(2, "/grpc.health.v1.Health/Watch"),
            begin(3, SERVICE + STREAMING, b"\xff"),
            begin(4, SERVICE + STREAMING, b"x" * (MAX_REQUEST_BYTES + 1)),
            begin(5, SERVICE + "Generate"),
            begin(6, "nonsense"),
            relay_pb2.RelayAction(call=9, cancel=True),
            begin(7, SERVICE + STREAMING),
            relay_pb2.RelayAction(call=7, cancel=True),  # before it has begun
            begin(8, SERVICE + STREAMING),
        ]
        actions[-3].begin.timeout.FromSeconds(10**9)
        actions[-1].begin.metadata.add(key="authorization", value=b"x" * MAX_METADATA_BYTES)
        await call.write(relay_pb2.RelayRequest(actions=actions))
        ends: dict[int, Any] = {}
        while len(ends) < 8:
            ends.update({answer.call: answer.end for answer in (await call.read()).answers if answer.HasField("end")})
        codes = {number: end.code for number, end in ends.items()}
        assert {codes[number] for number in (1, 2, 3, 5, 6)} <= {12, 16, 3}  # unimplemented, unauthenticated, invalid
        assert (codes[4], codes[7], codes[8]) == (3, 1, 3)
        contexts = [one for one in gc.get_objects() if type(one) is _RelayedContext]
        timers = [one._timer for one in contexts if one._timer is not None and not one._timer.cancelled()]
        assert all(timer.when() < asyncio.get_running_loop().time() for timer in timers), "one holds a call that ended"
        assert all(dict(from_wire(end.trailing_metadata)) for number, end in ends.items() if number != 7)
        assert server._calls.count == 0
        await call.done_writing()
        with suppress(grpc.aio.AioRpcError):
            while await call.read() is not grpc.aio.EOF:
                pass
        assert await call.code() is grpc.StatusCode.OK
        more = [stub.Relay() for _ in range(80)]
        for relay in more:
            await relay.write(relay_pb2.RelayRequest())
        await until(lambda: sum(relay.done() for relay in more) == 17)  # 64 run, one of them the link's
        for relay in more:
            relay.cancel()
        raw: Any = channel.stream_stream("/prompttuning.v1.RelayService/Relay", None, None)
        bad = raw()
        await bad.write(b"\xff\xff\xff")
        assert (await refused(bad)).code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("numbers", [[1, 1], list(range(MAX_ACTIONS + 1))])
async def test_a_relay_ends_for_a_number_that_is_used_and_for_too_many_actions(
    tmp_path: Path, numbers: list[int]
) -> None:
    async with serving(tmp_path) as (_, _, _, channel):
        stub: Any = relay_pb2_grpc.RelayServiceStub(channel)
        call = stub.Relay()
        begins = [relay_pb2.RelayBegin(method=SERVICE + STREAMING)] * len(numbers)
        await call.write(
            relay_pb2.RelayRequest(
                actions=[relay_pb2.RelayAction(call=n, begin=one) for n, one in zip(numbers, begins, strict=True)]
            )
        )
        with suppress(grpc.aio.AioRpcError):
            while await call.read() is not grpc.aio.EOF:
                pass
        assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT
