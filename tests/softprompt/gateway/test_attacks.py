"""Clients that leave, are slow, or mean harm, on raw sockets."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from softprompt.gateway import protocol
from tests.inference_service.conftest import Brake
from tests.softprompt.gateway.running import World, running_gateway
from tests.waiting import wait_until

LONG: dict[str, Any] = {
    "model": "tone",
    "messages": [{"role": "user", "content": "hello"}],
    "max_tokens": 400,
    "logit_bias": {"1": -100},  # the tiny model's end token
    "temperature": 2.0,
    "seed": 1,
}


def request(body: Any, extra: str = "", path: str = "/v1/chat/completions") -> bytes:
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{extra}"
    return f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content


@contextmanager
def connected(port: int) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), timeout=None) as made:
        yield made


def running(services: World) -> float:
    """Requests that occupy a row of the engine."""
    return services.loop.run(services.replica.metric("requests_running"))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("how", ["close", "reset", "half-close"])
def test_a_client_that_leaves_frees_its_rows(services: World, held: Brake, stream: bool, how: str) -> None:
    with connected(services.gateway.port) as client:
        client.sendall(request({**LONG, "stream": stream, "n": 2}))
        wait_until(lambda: running(services) == 2)
        if how == "reset":
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        if how == "half-close":
            client.shutdown(socket.SHUT_WR)
            wait_until(lambda: running(services) == 0)
    wait_until(lambda: running(services) == 0)


def head(path: str, *lines: str) -> bytes:
    """A head whose body is to follow. JSON unless the lines say otherwise."""
    kind = () if any("Content-Type" in line for line in lines) else ("Content-Type: application/json",)
    return "\r\n".join((f"POST /v1/{path} HTTP/1.1", "Host: localhost", *kind, *lines, "", "")).encode()


def answer_of(client: socket.socket) -> bytes:
    """All that comes until the other side closes; empty after a reset."""
    received = b""
    try:
        while piece := client.recv(65536):
            received += piece
    except ConnectionResetError:
        pass
    return received


async def reply(port: int, *pieces: bytes) -> bytes:
    """Send these pieces at once; what comes until the other side closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for piece in pieces:
        writer.write(piece)
    received = b""
    try:
        while piece := await reader.read(65536):
            received += piece
    except ConnectionResetError:
        pass
    finally:
        writer.close()
    return received


async def test_connections_that_only_occupy_a_place_are_closed(
    services: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.3)
    ports = services.trainer.port, services.replica.port
    async with running_gateway(tmp_path, *ports, body_seconds=0.3) as gateway:
        assert await reply(gateway.port) == b"", "no head"
        assert await reply(gateway.port, b"GET /livez HT") == b"", "a head that never ends"
        early = b""
        while not early:  # where even a whole head comes too late, the machine is slow
            early = await reply(gateway.port, head("nothing", "Content-Length: 999"), b"{")
        assert early.startswith(b"HTTP/1.1 404"), "answered at once, and closed when the rest doesn't come"
        monkeypatch.undo()
        begun = head("chat/completions", "Connection: close", "Content-Length: 100")
        slow_body = await reply(gateway.port, begun, b"{")
        assert slow_body.startswith(b"HTTP/1.1 408")
        assert b"request_timeout" in slow_body
        form = "Content-Type: multipart/form-data; boundary=x"
        upload = await reply(gateway.port, head("files", form, "Connection: close", "Content-Length: 9"), b"--x")
        assert upload.startswith(b"HTTP/1.1 408")


async def test_a_client_that_reads_nothing_is_disconnected(
    services: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "STALL_SECONDS", 0.3)
    ports = services.trainer.port, services.replica.port
    async with running_gateway(tmp_path, *ports) as gateway:
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
            client.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(client, ("127.0.0.1", gateway.port))
            asked = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n"
            with suppress(ConnectionResetError, BrokenPipeError):
                while True:  # pipelined requests; this client never reads an answer
                    await loop.sock_sendall(client, asked)
                    await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nx-request-id: a\r\n b\r\n", (200, 400)),
        (b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nx-request-id: a\x00b\r\n", (400,)),
        (b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer a\r\n x: y\r\n", (401, 400)),
        (
            b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\ntraceparent: \xff\xfe\r\ntracestate: "
            + b"a=b," * 500
            + b"\r\n",
            (200,),
        ),
        (b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\ncookie: " + b"x" * 100_000 + b"\r\n", (400, 431)),
        (b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n" + b"a: b\r\n" * 20_000, (400, 431)),
        (b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n", (400, 431)),
        (b"GET /v1/models/%ff%00 HTTP/1.1\r\nHost: localhost\r\n", (404,)),
        (b"GET /v1/files/..%2f..%2fetc HTTP/1.1\r\nHost: localhost\r\n", (404,)),
        (b"GET http://evil.example/v1/models HTTP/1.1\r\nHost: localhost\r\n", (404,)),
        (b"POST /v1/models HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n", (400,)),
        (b"POST /v1/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n", (400,)),
        (b"GET /v1/models HTTP/9.9\r\nHost: localhost\r\n", (200, 400, 505)),
        (b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade, close\r\n", (200,)),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", (400,)),
        (b"PRI * HTTP/2.0\r\n\r\nSM", (400, 421)),
    ],
)
def test_heads_that_mean_harm(services: World, head: bytes, status: tuple[int, ...]) -> None:
    with connected(services.gateway.port) as client:
        with suppress(ConnectionResetError, BrokenPipeError):
            client.sendall(head + b"\r\n" if b"Connection" in head else head + b"Connection: close\r\n\r\n")
        received = answer_of(client)
    assert received == b"" or int(received.split(b" ")[1]) in status, received[:200]
    assert httpx.get(f"{services.url}/livez", timeout=None).status_code == 200


def test_a_body_with_two_lengths_ends_the_connection(services: World) -> None:
    head = b"POST /v1/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"
    with connected(services.gateway.port) as client:
        client.sendall(head + b"0\r\n\r\nGET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        received = answer_of(client)
    assert received.startswith(b"HTTP/1.1 400 ")
    assert b"Content-Length and Transfer-Encoding" in received
    assert received.count(b"HTTP/1.1 ") == 1, "what a proxy took for a body is no request"
