"""W3C trace contexts through a call, and spans that reach a real receiver."""

from __future__ import annotations

import grpc
import pytest
from opentelemetry.trace import SpanKind
from prompttuning.v1 import generation_pb2

from shared.config import ConfigError
from shared.trace_context import current_traceparent, parent_of, trace_headers, trace_id_of
from shared.tracing import Tracing, tracing_of
from tests.log_lines import log_lines
from tests.shared.rpc.service import count_request, running_server
from tests.shared.spans import attributes, receiver

TRACE_ID, SPAN_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = f"00-{TRACE_ID}-{SPAN_ID}-01"
STATE = "vendor=abc,other=1"


@pytest.mark.parametrize(
    ("text", "passed_on"),
    [
        (PARENT, PARENT),
        (f"01-{TRACE_ID}-{SPAN_ID}-01-more", PARENT),  # of a later version: its parts that this version knows
        (f"00-{TRACE_ID}-{SPAN_ID}-01-more", ""),
        (f"ff-{TRACE_ID}-{SPAN_ID}-01", ""),
        (f"00-{'0' * 32}-{SPAN_ID}-01", ""),
        (f"00-{TRACE_ID}-{'0' * 16}-01", ""),
        (PARENT.upper(), ""),
        (PARENT + "\n", PARENT),
        (PARENT + "\nx", ""),
        ("", ""),
    ],
)
def test_only_valid_trace_contexts_are_taken(text: str, passed_on: str) -> None:
    assert trace_headers(parent_of(text)).get("traceparent", "") == passed_on


async def test_a_call_is_a_span_in_the_callers_trace_and_its_log_line_names_it() -> None:
    with receiver() as received:
        tracing = tracing_of("test", received.url)
        with log_lines("shared.rpc.interceptors", "call") as lines:
            async with running_server(tracing) as running:
                await running.stub.CountTokens(
                    count_request(prompt="tone"), metadata=(("traceparent", PARENT), ("tracestate", STATE))
                )
                with pytest.raises(grpc.aio.AioRpcError):
                    await running.stub.CountTokens(count_request("bug"))
        tracing.close()
        good, bad = received.spans
    assert [line["trace_id"] for line in lines] == [TRACE_ID, bad.trace_id.hex()]
    assert [line["code"] for line in lines] == ["OK", "INTERNAL"]
    assert good.trace_state == STATE
    assert bad.trace_state == ""
    assert (good.trace_id.hex(), good.parent_span_id.hex()) == (TRACE_ID, SPAN_ID)
    assert good.name == "prompttuning.v1.GenerationService/CountTokens"
    found = attributes(good)
    assert (found["rpc.method"], found["softprompt.caller"], found["softprompt.prompt"]) == (
        "CountTokens",
        "anonymous",
        "tone",
    )
    assert found["rpc.grpc.status_code"] == 0
    assert bad.trace_id != good.trace_id
    assert bad.status.message == "INTERNAL"
    assert "secret" not in str(bad)


async def test_a_span_names_the_version_that_answered() -> None:
    with receiver() as received:
        tracing = tracing_of("test", received.url)
        async with running_server(tracing) as running:
            await running.stub.Generate(
                generation_pb2.GenerateRequest(input=generation_pb2.GenerationInput(prompt="tone@default"))
            )
        tracing.close()
        (span,) = received.spans
    found = attributes(span)
    assert (found["softprompt.prompt"], found["softprompt.version"]) == ("tone@default", "prompts/tone/versions/3")


@pytest.mark.parametrize("state", ["no state", "=", "a" * 2000, "ä=b"])
async def test_a_bad_trace_state_is_ignored_and_the_trace_goes_on(state: str) -> None:
    with receiver() as received:
        tracing = tracing_of("test", received.url)
        with tracing.span("call", parent_of(PARENT, state), SpanKind.SERVER, {}) as begun:
            assert trace_id_of(begun) == current_traceparent().split("-")[1] == TRACE_ID
        tracing.close()
        (span,) = received.spans
    assert span.trace_state == ""


async def test_without_a_receiver_the_callers_trace_is_passed_on() -> None:
    with Tracing().span("call", parent_of(PARENT, STATE), SpanKind.SERVER, {}) as span:
        assert trace_headers() == {"traceparent": PARENT, "tracestate": STATE}
        assert trace_id_of(span) == TRACE_ID
        assert not span.is_recording()
    assert current_traceparent() == ""


async def test_latencies_carry_the_trace_as_an_exemplar() -> None:
    with receiver() as received:
        tracing = tracing_of("test", received.url)
        async with running_server(tracing) as running:
            await running.stub.CountTokens(count_request(), metadata=(("traceparent", PARENT),))
        tracing.close()
    exemplars = [
        sample.exemplar.labels
        for family in running.registry.collect()
        for sample in family.samples
        if sample.name == "grpc_server_handling_seconds_bucket" and sample.exemplar
    ]
    assert exemplars == [{"trace_id": TRACE_ID}]


def test_without_the_packages_the_start_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(ConfigError, match=r"softprompt\[tracing\]"):
        tracing_of("test", "http://127.0.0.1:1/v1/traces")
