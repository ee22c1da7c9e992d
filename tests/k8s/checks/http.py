"""The gateway of components/http, where an overlay has it: settings, ports, probes, grace, route, and the way to the
services, which alone know the callers.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from unittest import mock

from shared.config import ConfigError, load_settings
from softprompt.gateway.settings import GatewaySettings
from tests.k8s.manifests import Manifests, Object, Pod, ports

MARGIN_SECONDS = 10
PROBES = {"startupProbe": "/livez", "livenessProbe": "/livez", "readinessProbe": "/readyz"}


def check(manifests: Manifests) -> Iterator[str]:
    if manifests.find("Deployment", "gateway") is None:
        return
    pod = manifests.pod("gateway")
    yield from (f"gateway: {problem}" for problem in _settings(manifests, pod))
    for kind, path in PROBES.items():
        asked = pod.main.get(kind, {}).get("httpGet", {})
        if (asked.get("path"), asked.get("port")) != (path, "metrics"):
            yield f"gateway, {kind}: asks {asked}, and should ask {path} of the port metrics"
    routes = manifests.of("HTTPRoute")
    if not routes:
        yield "gateway: no HTTPRoute"
    for route in routes:
        yield from (f"HTTPRoute: {problem}" for problem in _route(manifests, route))
    for service in ("trainer", "inference"):
        if not manifests.environment(manifests.pod(service)).get(f"SOFTPROMPT_{service.upper()}_CALLERS_FILE"):
            yield f"gateway: {service} has no callers file: every caller that passes the Gateway has all permissions"


def _settings(manifests: Manifests, pod: Pod) -> Iterator[str]:
    environment = manifests.environment(pod)
    own = {name: value for name, value in environment.items() if name.startswith("SOFTPROMPT_GATEWAY_")}
    try:
        with mock.patch.dict(os.environ, own, clear=True):
            settings = load_settings(GatewaySettings)
    except ConfigError as error:
        yield str(error)
        return
    if (settings.port, settings.metrics_port) != (ports(pod.main).get("http"), ports(pod.main).get("metrics")):
        yield f"listens on {settings.port} and {settings.metrics_port}, the container's ports are {ports(pod.main)}"
    if settings.host != "0.0.0.0" or settings.log_format != "json":
        yield "listens on loopback only, or writes its log for people"
    behind = "router" if settings.inference.startswith("router:") else "inference-headless"
    for name, address in (("trainer", settings.trainer), (behind, settings.inference)):
        service = manifests.find("Service", name)
        port = address.rpartition(":")[2]
        if (
            service is None
            or f"{name}:" not in address
            or port not in [str(p["port"]) for p in service["spec"]["ports"]]
        ):
            yield f"calls {address}, where no Service {name} is"
    has_tls = any(name.endswith("_TLS_CERTIFICATE_FILE") for name in manifests.environment(manifests.pod("inference")))
    if (environment.get("SOFTPROMPT_TLS") == "off") is has_tls:
        yield "calls the services with TLS where they have none, or without"
    pause = pod.main.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    if pod.spec.get("terminationGracePeriodSeconds", 30) < pause + settings.grace_seconds + MARGIN_SECONDS:
        yield "is killed before its grace time is over"


def _route(manifests: Manifests, route: Object) -> Iterator[str]:
    grpc = {host for other in manifests.of("GRPCRoute") for host in other["spec"]["hostnames"]}
    if shared := grpc & set(route["spec"]["hostnames"]):
        yield f"shares {', '.join(sorted(shared))} with a GRPCRoute, which a listener refuses"
    for rule in route["spec"]["rules"]:
        if rule.get("timeouts", {}).get("request") != "0s":
            yield "cuts streams after a time"
        for backend in rule["backendRefs"]:
            service = manifests.find("Service", backend["name"])
            known = [port["port"] for port in service["spec"]["ports"] if port["name"] == "http"] if service else []
            if backend["port"] not in known:
                yield f"no HTTP port {backend['port']} of a Service {backend['name']}"
