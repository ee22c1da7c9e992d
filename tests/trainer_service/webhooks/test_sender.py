"""What a receiver can do to the one that sends: hang, answer byte by byte or forever, redirect."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from tests.trainer_service.webhooks.receiver import SECRET
from trainer_service.webhooks import sender
from trainer_service.webhooks.endpoints import Endpoint

STOP = threading.Event()


def drips_a_status(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 2")
    while not STOP.wait(0.05):
        connection.sendall(b"0")


def drips_headers(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nx-slow: ")
    while not STOP.wait(0.05):
        connection.sendall(b".")


def continues(connection: socket.socket) -> None:
    while not STOP.wait(0.01):
        connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")


def hangs(connection: socket.socket) -> None:
    STOP.wait()


def redirects(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 307 Moved\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n")


@contextmanager
def hostile(act: Callable[[socket.socket], None]) -> Iterator[Endpoint]:
    """An endpoint that does this after a request."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection, suppress(OSError):
                connection.recv(1 << 16)
                act(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield Endpoint(name="here", url=f"http://127.0.0.1:{server.getsockname()[1]}/", secrets=(SECRET,))
        finally:
            STOP.set()
            thread.join()
            STOP.clear()


@pytest.mark.parametrize(
    ("act", "seconds", "reason"),
    [
        (drips_a_status, 0.5, "no answer within 0.5 s"),
        (drips_headers, 2.0, ""),  # its status has come
        (continues, 0.5, "no answer within 0.5 s"),
        (hangs, 0.5, "no answer within 0.5 s"),
        (redirects, 600.0, "HTTP status 307"),
    ],
)
def test_a_hostile_receiver_gets_one_request_and_no_more_than_the_time_limit(
    act: Callable[[socket.socket], None], seconds: float, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender, "SEND_SECONDS", seconds)
    with hostile(act) as endpoint:
        assert sender.send(endpoint, "msg_1", b"{}") == reason
