"""Messages that arrive byte by byte: the call ends although frames keep coming, and other calls are unaffected."""

from __future__ import annotations

import pytest
from prompttuning.v1 import generation_pb2

from shared.rpc import messages
from tests.log_lines import log_lines
from tests.raw_http2 import framed, raw_call
from tests.shared.rpc.service import SERVICE, count_request, running_server

REQUEST = framed(
    generation_pb2.CountTokensRequest(input=generation_pb2.GenerationInput(text="x" * 10_000)).SerializeToString()
)


async def test_a_message_that_comes_byte_by_byte_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages, "FIRST_MESSAGE_SECONDS", 2.0)  # more than any other call takes
    with log_lines("shared.rpc.interceptors", "call") as lines:
        async with (
            running_server() as running,
            raw_call(running.port, f"/{SERVICE}/CountTokens") as call,
        ):
            num_sent = 0
            while not any(line["code"] == "DEADLINE_EXCEEDED" for line in lines):
                await call.send(REQUEST[num_sent : num_sent + 1])
                num_sent += 1
                await running.stub.CountTokens(count_request())
    assert 1 < num_sent < len(REQUEST)


async def test_a_message_in_pieces_that_comes_in_time_is_answered() -> None:
    with log_lines("shared.rpc.interceptors", "call") as lines:
        async with (
            running_server() as running,
            raw_call(running.port, f"/{SERVICE}/CountTokens") as call,
        ):
            for start in range(0, len(REQUEST), 100):
                await call.send(REQUEST[start : start + 100], is_last=start + 100 >= len(REQUEST))
            while not lines:
                await running.server.grpc_server.wait_for_termination(0.01)
    assert lines[0]["code"] == "OK"
