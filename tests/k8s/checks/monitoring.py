"""What scrapes, scales and watches: each pod is scraped once, autoscaling has its target, dashboards reach Grafana's
sidecar.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from tests.k8s import known_metrics
from tests.k8s.manifests import Manifests, Object


def check(manifests: Manifests) -> Iterator[str]:
    for monitor in manifests.of("ServiceMonitor"):
        yield from _scraped_once(manifests, monitor)
    for scaled in manifests.of("ScaledObject"):
        yield from _scaled(manifests, scaled)
    for rules in manifests.of("PrometheusRule"):
        for group in rules["spec"]["groups"]:
            for rule in group["rules"]:
                yield from (f"{rule.get('alert') or rule['record']}: {problem}" for problem in _rule(rule, rules))
    if manifests.of("ServiceMonitor"):
        yield from _dashboards(manifests)


def _scraped_once(manifests: Manifests, monitor: Object) -> Iterator[str]:
    port = monitor["spec"]["endpoints"][0]["port"]
    labels = monitor["spec"]["selector"]["matchLabels"]
    scraped = [
        pod.name
        for service in manifests.of("Service")
        if labels.items() <= service["metadata"].get("labels", {}).items()
        and port in [item["name"] for item in service["spec"]["ports"]]
        for pod in manifests.selected(service["spec"]["selector"])
    ]
    expected = [name for name in ("gateway", "inference", "router", "trainer") if manifests.find("Deployment", name)]
    if sorted(scraped) != expected:
        yield f"ServiceMonitor scrapes {sorted(scraped)}"


def _scaled(manifests: Manifests, scaled: Object) -> Iterator[str]:
    target = scaled["spec"]["scaleTargetRef"]
    if manifests.find(target["kind"], target["name"]) is None:
        yield f"ScaledObject: no {target['kind']} {target['name']}"
    waits = all("softprompt_router_waiting" in trigger["metadata"]["query"] for trigger in scaled["spec"]["triggers"])
    if not (0 if waits else 1) <= scaled["spec"]["minReplicaCount"] <= scaled["spec"]["maxReplicaCount"]:
        yield "ScaledObject: replicas go from more to fewer, or to none"
    for trigger in scaled["spec"]["triggers"]:
        yield from (
            f"ScaledObject: no service exports {name}"
            for name in known_metrics.unknown_in(trigger["metadata"]["query"])
        )


def _rule(rule: Object, rules: Object) -> Iterator[str]:
    recorded = {item["record"] for group in rules["spec"]["groups"] for item in group["rules"] if "record" in item}
    yield from (f"no service exports {name}" for name in known_metrics.unknown_in(rule["expr"]) - recorded)
    yield from known_metrics.selector_problems(rule["expr"]) if _is_watched(rule, rules) else ()
    if "alert" in rule:
        if rule.get("labels", {}).get("severity") not in ("critical", "warning"):
            yield "has no severity"
        if not {"summary", "description"} <= rule.get("annotations", {}).keys():
            yield "says neither what happens nor what to do"


def _is_watched(rule: Object, rules: Object) -> bool:
    """An alert, or a record that an alert looks at."""
    alerts = [item["expr"] for group in rules["spec"]["groups"] for item in group["rules"] if "alert" in item]
    return "alert" in rule or any(rule["record"] in expression for expression in alerts)


def _dashboards(manifests: Manifests) -> Iterator[str]:
    config_map = manifests.find("ConfigMap", "softprompt-dashboards")
    if config_map is None or config_map["metadata"].get("labels", {}).get("grafana_dashboard") != "1":
        yield "no ConfigMap of dashboards that Grafana's sidecar would find"
        return
    for name, text in config_map["data"].items():
        dashboard = json.loads(text)
        if not re.fullmatch(r"softprompt-[a-z]+", str(dashboard.get("uid"))) or not dashboard.get("panels"):
            yield f"{name} has no uid or no panels"
