"""Spans of the services, exported to a receiver if one is configured. Callers' trace contexts are always passed on.

OpenTelemetry's API is always installed. Its SDK and exporter belong to the extra `tracing` and are imported only if
traces are exported.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from opentelemetry.context import Context
from opentelemetry.trace import NoOpTracerProvider, Span, SpanKind, use_span

from shared.config import ConfigError


class Tracing:
    """Creates spans. `provider` is a TracerProvider of OpenTelemetry's SDK; None: spans are not recorded."""

    def __init__(self, provider: Any = None) -> None:
        self._provider = provider
        self._tracer = (provider or NoOpTracerProvider()).get_tracer("softprompt")

    def begin(self, name: str, parent: Context, kind: SpanKind, attributes: Mapping[str, str | int]) -> Span:
        """Start a child span of `parent`, or a new trace if `parent` is empty. The caller must end the span."""
        span: Span = self._tracer.start_span(name, context=parent, kind=kind, attributes=attributes)
        return span

    @contextmanager
    def span(self, name: str, parent: Context, kind: SpanKind, attributes: Mapping[str, str | int]) -> Iterator[Span]:
        """Start a span that is current inside the `with` block and ends with it.

        Errors are not recorded in the span because their texts may contain data of callers.
        """
        begun = self.begin(name, parent, kind, attributes)
        with use_span(begun, end_on_exit=True, record_exception=False, set_status_on_exception=False):
            yield begun

    def close(self) -> None:
        """Send the remaining spans. Blocks until the receiver has taken them, at most a few seconds."""
        if self._provider is not None:
            self._provider.shutdown()


def tracing_of(service: str, otlp_endpoint: str) -> Tracing:
    """Tracing that sends spans in batches to an OTLP/HTTP receiver; without an endpoint, spans are not recorded.

    A thread of the SDK sends them. Raises ConfigError if the extra `tracing` is not installed.
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
