"""Probes ask for health services that the services register, on the port that speaks plaintext, and give a model time
to load.
"""

from __future__ import annotations

from collections.abc import Iterator

from shared.rpc.server import LIVE, READY
from tests.k8s.checks.settings import SERVICES
from tests.k8s.manifests import Manifests, Object, Pod, ports

LOADING_SECONDS = 900
PATIENCE_SECONDS = 60
"""A busy process is not a dead one: a restart costs every stream."""

_SERVICE = {"startupProbe": READY, "livenessProbe": LIVE, "readinessProbe": READY}


def check(manifests: Manifests) -> Iterator[str]:
    for pod in manifests.pods:
        if pod.owner["kind"] == "Job":
            continue
        for kind, service in _SERVICE.items():
            probe = pod.main.get(kind)
            if probe is None:
                yield f"{pod.name} has no {kind}"
                continue
            if kind == "startupProbe" and pod.name == "router":  # it has started before it finds a replica
                service = LIVE
            problems = _grpc(pod, probe, service) if pod.name in (*SERVICES, "router") else _tcp(pod, probe)
            yield from (f"{pod.name}, {kind}: {problem}" for problem in problems)
        yield from (f"{pod.name}: {problem}" for problem in _times(pod))


def _grpc(pod: Pod, probe: Object, service: str) -> Iterator[str]:
    asked = probe.get("grpc", {})
    if asked.get("service") != service:
        yield f"asks for {asked.get('service')!r}, and should for {service!r}"
    if asked.get("port") != ports(pod.main).get("health"):  # the main port may speak TLS, which kubelet's probes don't
        yield f"asks port {asked.get('port')}, health is on {ports(pod.main).get('health')}"


def _tcp(pod: Pod, probe: Object) -> Iterator[str]:
    port = probe.get("tcpSocket", probe.get("httpGet", {})).get("port")
    if port not in ports(pod.main):
        yield f"port {port} is not one of {sorted(ports(pod.main))}"


def _times(pod: Pod) -> Iterator[str]:
    startup, liveness = pod.main.get("startupProbe", {}), pod.main.get("livenessProbe", {})
    if pod.name in SERVICES and _budget(startup) < LOADING_SECONDS:
        yield f"has {_budget(startup)} s to load a model, and not {LOADING_SECONDS}"
    if _budget(liveness) < PATIENCE_SECONDS:
        yield f"is restarted after {_budget(liveness)} s of silence, and not {PATIENCE_SECONDS}"


def _budget(probe: Object) -> int:
    return int(probe.get("periodSeconds", 10)) * int(probe.get("failureThreshold", 3))
