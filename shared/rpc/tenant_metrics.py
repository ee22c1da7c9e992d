"""Requests, outcomes and latency by tenant and by prompt class: the same series of every service and the gateway.

Services with a callers file know the tenant and the class, and answer with both in trailing metadata, and streams also
in initial metadata, because one that is cut has no trailing metadata. Routers and gateways have no callers file: they
read them there, so no caller can choose a label.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from shared.caller import STANDARD_CLASS, PromptClass

TENANT_KEY, CLASS_KEY = "x-softprompt-tenant", "x-softprompt-prompt-class"
OTHER = "other"
"""Tenant of callers that the callers file doesn't name, of unauthenticated calls, and of all without a callers file."""
OUTCOMES = ("ok", "invalid", "refused", "timeout", "cancelled", "fault")
"""invalid: the caller's mistake; refused: limits and full queues; timeout: the caller's deadline; fault: the service's.
"""
_MAX_PAIRS = 256
"""Tenants times classes with series of their own in one process; as many classes of further tenants have one."""
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_LABELS = ["tenant", "prompt_class"]
_OUTCOME_BY_CODE = {
    "OK": "ok",
    "RESOURCE_EXHAUSTED": "refused",
    "DEADLINE_EXCEEDED": "timeout",
    "CANCELLED": "cancelled",
    **dict.fromkeys(("INTERNAL", "UNAVAILABLE", "UNKNOWN", "DATA_LOSS"), "fault"),
}


@dataclass(frozen=True)
class TenantLabels:
    """Labels of one request."""

    tenant: str = OTHER
    prompt_class: str = STANDARD_CLASS

    @classmethod
    def read(cls, metadata: Iterable[tuple[str, Any]] | None) -> TenantLabels:
        """The labels in a service's metadata; the default ones if it has none."""
        found = {key: value for key, value in metadata or () if isinstance(value, str)}
        return cls(found.get(TENANT_KEY) or OTHER, found.get(CLASS_KEY) or STANDARD_CLASS)

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """The labels as metadata."""
        return ((TENANT_KEY, self.tenant), (CLASS_KEY, self.prompt_class))


class TenantMetrics:
    """Requests by outcome, seconds until the first message of a stream, and seconds until the end."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._known: set[TenantLabels] = set()
        self.requests = Counter(
            "softprompt_tenant_requests",
            "Requests by tenant, prompt class and outcome.",
            [*_LABELS, "outcome"],
            registry=registry,
        )
        self.seconds = Histogram(
            "softprompt_tenant_request_seconds",
            "Time that requests took.",
            _LABELS,
            registry=registry,
            buckets=_SECONDS,
        )
        self.first_message = Histogram(
            "softprompt_tenant_first_message_seconds",
            "Time until the first message of a streamed answer.",
            _LABELS,
            registry=registry,
            buckets=_SECONDS,
        )
        self._bounded(TenantLabels())

    def observe(self, labels: TenantLabels, outcome: str, seconds: float, first_message: float | None) -> None:
        """Count a request that ended. `first_message`: seconds until a stream's first message; None: it had none."""
        labels = self._bounded(labels)
        self.requests.labels(labels.tenant, labels.prompt_class, outcome).inc()
        self.seconds.labels(labels.tenant, labels.prompt_class).observe(seconds)
        if first_message is not None:
            self.first_message.labels(labels.tenant, labels.prompt_class).observe(first_message)

    def _bounded(self, labels: TenantLabels) -> TenantLabels:
        """The labels, or the class of other tenants if there are too many.

        New series begin with 0 for each outcome: Prometheus sees no increase in a series whose first value is 1.
        """
        if labels not in self._known:
            if len(self._known) >= _MAX_PAIRS and labels.tenant != OTHER:
                return self._bounded(TenantLabels(OTHER, labels.prompt_class))
            if len(self._known) >= 2 * _MAX_PAIRS:
                return TenantLabels()
            self._known.add(labels)
            for outcome in OUTCOMES:
                self.requests.labels(labels.tenant, labels.prompt_class, outcome)
        return labels


class ObjectiveCollector(Collector):
    """Exports the objectives of the prompt classes, so that alerts need no copy of them."""

    def __init__(self, classes: Callable[[], Mapping[str, PromptClass]]) -> None:
        self._classes = classes

    def collect(self) -> Iterator[Metric]:
        """The objectives as they are now."""
        family = GaugeMetricFamily(
            "softprompt_slo_objective_ratio",
            "Share of a prompt class's requests that should not fail by the service's fault.",
            labels=["prompt_class"],
        )
        for name, found in self._classes().items():
            family.add_metric([name], found.objective)
        yield family


def outcome_of_code(code: str) -> str:
    """The outcome of a call with this gRPC status code."""
    return _OUTCOME_BY_CODE.get(code, "invalid")


def outcome_of_status(status: int) -> str:
    """The outcome of an HTTP request with this status; 499: the client left."""
    if status < 400:
        return "ok"
    return {408: "timeout", 429: "refused", 499: "cancelled"}.get(status, "fault" if status >= 500 else "invalid")
