"""Names of the series that the services' own classes register, and how to find metric names in a PromQL expression."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from typing import Any

from prometheus_client import CollectorRegistry, Metric

from inference_service.metrics import EngineMetrics, PromptMetrics, StateCollector, UsageCollector
from inference_service.servicer import SERVICE_NAME
from shared.caller import STANDARD_CLASS, PromptClass
from shared.rpc.metrics import RpcMetrics
from shared.rpc.tenant_metrics import ObjectiveCollector
from softprompt.gateway.app import OPERATIONS
from softprompt.gateway.metrics import GatewayMetrics
from softprompt.router.metrics import RouterMetrics
from trainer_service.maintenance.storage_usage import StorageUsage
from trainer_service.metrics import TrainerMetrics
from trainer_service.parts import SERVICE_NAMES

_NOT_METRICS = frozenset(
    {
        *(
            "and",
            "or",
            "unless",
            "by",
            "without",
            "on",
            "ignoring",
            "group_left",
            "group_right",
            "offset",
            "bool",
            "time",
            "vector",
        ),
        *(
            "sum",
            "min",
            "max",
            "avg",
            "count",
            "topk",
            "rate",
            "irate",
            "increase",
            "delta",
            "deriv",
            "histogram_quantile",
            "absent",
            "sum_over_time",
        ),
        *("predict_linear", "max_over_time", "clamp_min", "clamp_max", "label_replace"),
    }
)
TLS_EXPIRY, CALLERS_FILE = "softprompt_tls_certificate_expiry_timestamp_seconds", "softprompt_callers_file_current"
SHARED_LIMITS = "softprompt_shared_limits_available"
"""Exported where a service has these files or shared limits: `test_dashboards` holds the names against the code."""

_BY_PROMETHEUS = frozenset({"job", "namespace", "pod", "instance", "le", "softprompt_io_base_model"})
_SUFFIXES = ("_total", "_bucket", "_sum", "_count", "_created")


@cache
def families() -> tuple[Metric, ...]:
    """What fresh services export, by the classes that they register: a service of one base model, before anything has
    happened.
    """
    registry = CollectorRegistry()
    RpcMetrics(registry).expect((*SERVICE_NAMES, SERVICE_NAME))
    gateway = CollectorRegistry()  # each process has the series of tenants
    GatewayMetrics(gateway).expect(OPERATIONS)
    TrainerMetrics(registry, ["m"]).set_storage(StorageUsage(1, 1, 0, 0, 0))  # the first thing that a trainer measures
    EngineMetrics(registry, 10, lambda prefix_id: prefix_id)
    PromptMetrics(registry, lambda: None)
    RouterMetrics(registry).waiting = lambda: {"m": 0}
    zeros: Any = Zeros()
    objectives = ObjectiveCollector(lambda: {STANDARD_CLASS: PromptClass()})
    state = StateCollector(lambda: zeros, zeros, lambda: zeros)
    lost = UsageCollector(lambda: 0).collect()
    return (*registry.collect(), *gateway.collect(), *objectives.collect(), *state.collect(), *lost)


class Zeros:
    """An engine, a registry and guides in which every figure is 0."""

    def __getattr__(self, name: str) -> float:
        return 0.0


@cache
def names() -> frozenset[str]:
    """Families, by the name without the suffix of a counter or histogram."""
    return frozenset({"up", TLS_EXPIRY, CALLERS_FILE, SHARED_LIMITS} | {family.name for family in families()})


@cache
def label_names() -> dict[str, frozenset[str]]:
    """Labels of each family that has any, also those that Prometheus adds."""
    own = {name: collector._labelnames for collector in _collectors() for name in [collector._name]}
    return {family.name: frozenset(own.get(family.name, ())) | _BY_PROMETHEUS for family in families()}


def _collectors() -> list[Any]:
    registry = CollectorRegistry()
    RpcMetrics(registry)
    gateway = CollectorRegistry()
    GatewayMetrics(gateway)
    TrainerMetrics(registry)
    EngineMetrics(registry, 10, lambda prefix_id: prefix_id)
    PromptMetrics(registry, lambda: None)
    RouterMetrics(registry)
    found = (*registry._collector_to_names, *gateway._collector_to_names)
    return [one for one in found if hasattr(one, "_labelnames")]


def selector_problems(expression: str) -> Iterator[str]:
    """Labels, and values of them, that an expression of an alert asks for and no service exports.

    A fresh service must have the series already: `increase` and `rate` see nothing of one that begins with its first
    event.
    """
    for name, selector in re.findall(r"([a-zA-Z_:][a-zA-Z0-9_:]*)\{([^}]*)\}", expression):
        samples = [sample for family in families() for sample in family.samples if sample.name == name]
        labels = label_names().get(
            next((known for known in _stems(name) if known in label_names()), ""), _BY_PROMETHEUS
        )
        for label, operator, value in re.findall(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"', selector):
            if label not in labels:
                yield f"{name} has no label {label}"
            elif label not in _BY_PROMETHEUS:
                known = {sample.labels[label] for sample in samples if label in sample.labels}
                for wanted in value.split("|") if "~" in operator else [re.escape(value)]:
                    if not any(re.fullmatch(wanted, found) for found in known):
                        yield f"{name} of a fresh service has no {label}={wanted}"


def _stems(name: str) -> tuple[str, ...]:
    return (name, *(name.removesuffix(suffix) for suffix in _SUFFIXES))


def metric_names(expression: str) -> set[str]:
    """Metrics that a PromQL expression selects."""
    bare = re.sub(r'"[^"]*"', "", expression)
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]", " ", bare)
    bare = re.sub(r"\b(by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)", " ", bare)
    words = set(re.findall(r"[a-zA-Z_:][a-zA-Z0-9_:]*", bare))
    return {word for word in words if word not in _NOT_METRICS}


def unknown_in(expression: str) -> set[str]:
    known = names()
    return {name for name in metric_names(expression) if not set(_stems(name)) & known}
