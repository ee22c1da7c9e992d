"""The caller's trace goes on in the services: what the client sends with each call while a span of the caller's is
current.
"""

from __future__ import annotations

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, TraceState

from shared.tracing import tracing_of
from softprompt.client.async_client import AsyncClient
from softprompt.client.security import ClientSecurity
from tests.shared.rpc.service import running_server
from tests.shared.spans import receiver

NO_SECURITY = ClientSecurity()


async def test_every_call_is_a_child_of_the_callers_span() -> None:
    remote = SpanContext(int("4b" * 16, 16), int("0f" * 8, 16), True, TraceFlags(1), TraceState([("vendor", "abc")]))
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("caller")
    with receiver() as received:
        tracing = tracing_of("test", received.url)
        async with (
            running_server(tracing) as running,
            AsyncClient(inference=f"127.0.0.1:{running.port}", security=NO_SECURITY) as client,
        ):
            running.servicer.whole = True
            running.servicer.release.set()
            with (
                trace.use_span(NonRecordingSpan(remote)),
                tracer.start_as_current_span("what the caller does") as span,
            ):
                await client.count_tokens("hello")
                async for _ in client.stream("hello"):
                    pass
        tracing.close()
        spans = list(received.spans)
    own = span.get_span_context()
    assert {found.name.rpartition("/")[2] for found in spans} == {"CountTokens", "GenerateStream"}
    for found in spans:
        assert int.from_bytes(found.trace_id) == own.trace_id == remote.trace_id
        assert int.from_bytes(found.parent_span_id) == own.span_id
        assert found.trace_state == "vendor=abc"


async def test_without_a_span_nothing_is_sent() -> None:
    async with (
        running_server() as running,
        AsyncClient(inference=f"127.0.0.1:{running.port}", security=NO_SECURITY) as client,
    ):
        await client.count_tokens("hello")
        sent = running.servicer.metadata
    assert "user-agent" in sent
    assert not {"traceparent", "tracestate"} & sent.keys()
