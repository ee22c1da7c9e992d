"""Spans, exported to a receiver if there is one. Without it the trace contexts of callers are passed on all the same.

OpenTelemetry's API is always there; its SDK and exporter are the extra `tracing`, imported only if traces are exported.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from opentelemetry.context import Context
from opentelemetry.trace import NoOpTracerProvider, Span, SpanKind, use_span

from shared.config import ConfigError


class Tracing:
    """`provider`: a TracerProvider of OpenTelemetry's SDK; None passes trace contexts on and records nothing."""

    def __init__(self, provider: Any = None) -> None:
        self._provider = provider
        self._tracer = (provider or NoOpTracerProvider()).get_tracer("softprompt")

    def begin(self, name: str, parent: Context, kind: SpanKind, attributes: Mapping[str, str | int]) -> Span:
        """A span below `parent`, or of a new trace where that is empty. The caller ends it."""
        span: Span = self._tracer.start_span(name, context=parent, kind=kind, attributes=attributes)
        return span

    @contextmanager
    def span(self, name: str, parent: Context, kind: SpanKind, attributes: Mapping[str, str | int]) -> Iterator[Span]:
        """Within it, the span is the current one. Errors are not recorded in it: their text may hold what callers sent."""
        begun = self.begin(name, parent, kind, attributes)
        with use_span(begun, end_on_exit=True, record_exception=False, set_status_on_exception=False):
            yield begun

    def close(self) -> None:
        """Send what is left. Blocks for as long as the receiver takes, at most some seconds."""
        if self._provider is not None:
            self._provider.shutdown()


def tracing_of(service: str, otlp_endpoint: str) -> Tracing:
    """Spans in batches to an OTLP/HTTP receiver, on a thread of the SDK; none without an endpoint. Raises ConfigError
    without the extra.
    """
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
    provider.add_span_processor(
        BatchSpanProcessor(OTLPSpanExporter(endpoint=otlp_endpoint, timeout=5), schedule_delay_millis=1000)
    )
    return Tracing(provider)
