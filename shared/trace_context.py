"""W3C trace contexts in and out, by OpenTelemetry's API. The client needs no more of tracing than this."""

from __future__ import annotations

from opentelemetry.context import Context
from opentelemetry.trace import Span, format_trace_id
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

_PROPAGATOR = TraceContextTextMapPropagator()


def parent_of(traceparent: str, tracestate: str = "") -> Context:
    """The context that a caller's headers name. A bad header is ignored, as the standard says (W3C Trace Context, level
    1).
    """
    return _PROPAGATOR.extract({"traceparent": traceparent, "tracestate": tracestate})


def trace_headers(context: Context | None = None) -> dict[str, str]:
    """`traceparent` and `tracestate` of the span of a context, by default the current one; empty if there is none."""
    headers: dict[str, str] = {}
    _PROPAGATOR.inject(headers, context)
    return headers


def current_traceparent() -> str:
    """Of the span, or of the call, that runs now; empty if there is none."""
    return trace_headers().get("traceparent", "")


def trace_id_of(span: Span) -> str:
    """32 hexadecimal digits; empty for a span of no trace."""
    found = span.get_span_context()
    return format_trace_id(found.trace_id) if found.is_valid else ""
