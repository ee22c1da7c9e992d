"""Reads and writes W3C trace contexts with OpenTelemetry's API. The client needs no other tracing code."""

from __future__ import annotations

from opentelemetry.context import Context
from opentelemetry.trace import Span, format_trace_id
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

_PROPAGATOR = TraceContextTextMapPropagator()


def parent_of(traceparent: str, tracestate: str = "") -> Context:
    """The context in a caller's headers. Invalid headers are ignored, as W3C Trace Context (level 1) requires."""
    return _PROPAGATOR.extract({"traceparent": traceparent, "tracestate": tracestate})


def trace_headers(context: Context | None = None) -> dict[str, str]:
    """`traceparent` and `tracestate` for the span of a context, by default the current one; empty without a span."""
    headers: dict[str, str] = {}
    _PROPAGATOR.inject(headers, context)
    return headers


def current_traceparent() -> str:
    """`traceparent` of the current span or call; empty without one."""
    return trace_headers().get("traceparent", "")


def trace_id_of(span: Span) -> str:
    """The span's trace id, 32 hexadecimal digits; empty if the span belongs to no trace."""
    found = span.get_span_context()
    return format_trace_id(found.trace_id) if found.is_valid else ""
