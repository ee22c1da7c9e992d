"""Clients that leave, are slow, or mean harm, on raw sockets."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.softprompt.gateway.running import World

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
    with socket.create_connection(("127.0.0.1", port), timeout=20) as made:
        yield made


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def running(services: World) -> float:
    """Requests that occupy a row of the engine."""
    return services.loop.run(services.replica.metric("requests_running"))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("how", ["close", "reset", "half-close"])
def test_a_client_that_leaves_frees_its_rows(services: World, slow: None, stream: bool, how: str) -> None:
    with connected(services.gateway.port) as client:
        client.sendall(request({**LONG, "stream": stream, "n": 2}))
        wait_for(lambda: running(services) == 2)
        if how == "reset":
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        if how == "half-close":
            client.shutdown(socket.SHUT_WR)
            wait_for(lambda: running(services) == 0)
    wait_for(lambda: running(services) == 0)
