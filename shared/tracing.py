"""Traces: W3C trace context in and out, and spans where OpenTelemetry is set up. Without it the ids still go through logs and to workers.

OpenTelemetry's packages are the extra `tracing`; they are imported only if traces are exported.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal

from shared.config import ConfigError

Kind = Literal["server", "internal"]

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}(?:-[^\s]{0,400})?")
_NOTHING = ("0" * 32, "0" * 16)
_current: ContextVar[str] = ContextVar("softprompt_traceparent", default="")


def checked_traceparent(text: str) -> str:
    """The header as it came if it is a valid one (W3C Trace Context, level 1), else nothing: a bad one is ignored, as the standard says."""
    match = _TRACEPARENT.fullmatch(text)
    bad = match is None or text.startswith("ff") or match[1] == _NOTHING[0] or match[2] == _NOTHING[1]
    return "" if bad or (text.startswith("00") and len(text) != 55) else text


def trace_id_of(traceparent: str) -> str:
    return traceparent.split("-")[1] if traceparent else ""


def current_traceparent() -> str:
    """Of the span, or of the call, that runs now; empty if there is none."""
    return _current.get()


class Span:
    """One piece of work that is traced, or passes its trace on."""

    def __init__(self, traceparent: str, span: Any = None) -> None:
        self.traceparent, self._span = traceparent, span

    @property
    def is_sampled(self) -> bool:
        return self._span is not None and self._span.is_recording()

    def set(self, attributes: Mapping[str, str | int | float | bool]) -> None:
        if self._span is not None:
            self._span.set_attributes(attributes)

    def fail(self, description: str) -> None:
        if self._span is not None:
            from opentelemetry.trace import Status, StatusCode

            self._span.set_status(Status(StatusCode.ERROR, description))

    def end(self) -> None:
        if self._span is not None:
            self._span.end()


class Tracing:
    """`provider`: an OpenTelemetry TracerProvider; None passes trace contexts on and records nothing."""

    def __init__(self, provider: Any = None) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("softprompt") if provider is not None else None

    def begin(self, name: str, parent: str, kind: Kind, attributes: Mapping[str, str | int], state: str = "") -> Span:
        """A span below `parent` (a traceparent, or empty for a new trace) that somebody ends. `state`: the tracestate that came with it."""
        if self._tracer is None:
            return Span(parent)
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        context = TraceContextTextMapPropagator().extract({"traceparent": parent, "tracestate": state} if parent else {})
        span_kind = SpanKind.SERVER if kind == "server" else SpanKind.INTERNAL
        span = self._tracer.start_span(name, context=context, kind=span_kind, attributes=attributes)
        found = span.get_span_context()
        return Span(f"00-{found.trace_id:032x}-{found.span_id:016x}-{int(found.trace_flags):02x}", span)

    @contextmanager
    def span(self, name: str, parent: str, kind: Kind, attributes: Mapping[str, str | int], state: str = "") -> Iterator[Span]:
        """Within it, the span is the current one."""
        span = self.begin(name, parent, kind, attributes, state)
        token = _current.set(span.traceparent)
        try:
            yield span
        finally:
            _current.reset(token)
            span.end()

    def close(self) -> None:
        """Send what is left. Blocks for as long as the receiver takes, at most some seconds."""
        if self._provider is not None:
            self._provider.shutdown()


def tracing_of(service: str, otlp_endpoint: str) -> Tracing:
    """Spans in batches to an OTLP/HTTP receiver, on a thread of the SDK; none without an endpoint. Raises ConfigError without the extra."""
    if not otlp_endpoint:
        return Tracing()
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise ConfigError("traces need OpenTelemetry: install softprompt[tracing]") from error
    provider = TracerProvider(resource=Resource.create({"service.name": service}), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=otlp_endpoint, timeout=5), schedule_delay_millis=1000))
    return Tracing(provider)
