"""Names of the series that the services' own classes register, and how to find metric names in a PromQL expression."""

from __future__ import annotations

import re
from functools import cache
from unittest import mock

from prometheus_client import CollectorRegistry

from inference_service.engine.stats import EngineStats
from inference_service.metrics import EngineMetrics, PromptMetrics, StateCollector
from shared.rpc.metrics import RpcMetrics
from trainer_service.metrics import TrainerMetrics

_NOT_METRICS = frozenset(
    {
        *("and", "or", "unless", "by", "without", "on", "ignoring", "group_left", "group_right", "offset", "bool", "time", "vector"),
        *("sum", "min", "max", "avg", "count", "topk", "rate", "irate", "increase", "delta", "deriv", "histogram_quantile", "absent"),
        *("predict_linear", "clamp_min", "clamp_max", "label_replace"),
    }
)
TLS_EXPIRY = "softprompt_tls_certificate_expiry_timestamp_seconds"
"""Exported where a service has a certificate: `test_dashboards` holds the name against the code."""

_SUFFIXES = ("_total", "_bucket", "_sum", "_count", "_created")


@cache
def names() -> frozenset[str]:
    """Families, by the name without the suffix of a counter or histogram."""
    registry = CollectorRegistry()
    RpcMetrics(registry)
    TrainerMetrics(registry)
    EngineMetrics(registry, 10, lambda prefix_id: prefix_id)
    PromptMetrics(registry, lambda: None)
    state = StateCollector(lambda: mock.MagicMock(spec=EngineStats), mock.MagicMock())
    return frozenset({"up", TLS_EXPIRY} | {family.name for family in registry.collect()} | _state_families(state))


def _state_families(state: StateCollector) -> set[str]:
    class Zeros:
        def __getattr__(self, name: str) -> float:
            return 0.0

    zeros = Zeros()
    return {family.name for family in StateCollector(lambda: zeros, zeros).collect()}  # type: ignore[arg-type,return-value]


def metric_names(expression: str) -> set[str]:
    """Metrics that a PromQL expression selects."""
    bare = re.sub(r'"[^"]*"', "", expression)
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]", " ", bare)
    bare = re.sub(r"\b(by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)", " ", bare)
    words = set(re.findall(r"[a-zA-Z_:][a-zA-Z0-9_:]*", bare))
    return {word for word in words if word not in _NOT_METRICS}


def unknown_in(expression: str) -> set[str]:
    known = names()
    return {name for name in metric_names(expression) if not {name, *(name.removesuffix(suffix) for suffix in _SUFFIXES)} & known}
