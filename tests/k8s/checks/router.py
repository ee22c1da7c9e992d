"""The router of components/router, where an overlay has it: settings, ports, probes, grace, and the store of the
replicas behind it, whose records have the pods' addresses.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from unittest import mock

from shared.config import ConfigError, load_settings
from softprompt.router.settings import RouterSettings
from tests.k8s.checks.settings import settings_of
from tests.k8s.manifests import Manifests, Pod, ports

MARGIN_SECONDS = 10


def check(manifests: Manifests) -> Iterator[str]:
    inference = manifests.pod("inference")
    address = manifests.environment(inference).get("SOFTPROMPT_INFERENCE_ADDRESS", "")
    if address != f"$(POD_IP):{ports(inference.main).get('grpc')}":
        yield f"inference: its records say that it is at {address!r}"
    named = {item["name"]: item for item in inference.main.get("env", [])}
    if named.get("POD_IP", {}).get("valueFrom", {}).get("fieldRef", {}).get("fieldPath") != "status.podIP":
        yield "inference: POD_IP is not the pod's address"
    if manifests.find("Deployment", "router") is not None:
        yield from (f"router: {problem}" for problem in _router(manifests, manifests.pod("router")))


def _router(manifests: Manifests, pod: Pod) -> Iterator[str]:
    environment = manifests.environment(pod)
    own = {name: value for name, value in environment.items() if name.startswith("SOFTPROMPT_ROUTER_")}
    try:
        with mock.patch.dict(os.environ, own, clear=True):
            settings = load_settings(RouterSettings)
    except ConfigError as error:
        yield str(error)
        return
    listens = {"grpc": settings.port, "health": settings.health_port, "metrics": settings.metrics_port}
    if listens != ports(pod.main):
        yield f"listens on {listens}, the container's ports are {ports(pod.main)}"
    if settings.host != "0.0.0.0" or settings.log_format != "json":
        yield "listens on loopback only, or writes its log for people"
    replicas = settings_of(manifests, manifests.pod("inference"))
    if settings.store_url != getattr(replicas, "store_url"):  # noqa: B009 - the base class doesn't know it
        yield f"reads {settings.store_url}, where no replica writes"
    has_tls = not getattr(replicas, "is_plaintext")  # noqa: B009
    if (environment.get("SOFTPROMPT_TLS") == "off") is has_tls:
        yield "calls the replicas with TLS where they have none, or without"
    pause = pod.main.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    if pod.spec.get("terminationGracePeriodSeconds", 30) < pause + settings.grace_seconds + MARGIN_SECONDS:
        yield "is killed before its grace time is over"
