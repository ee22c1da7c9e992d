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


def router_settings(manifests: Manifests) -> RouterSettings:
    """Raises ConfigError."""
    environment = manifests.environment(manifests.pod("router"))
    own = {name: value for name, value in environment.items() if name.startswith("SOFTPROMPT_ROUTER_")}
    with mock.patch.dict(os.environ, own, clear=True):
        return load_settings(RouterSettings)


def _router(manifests: Manifests, pod: Pod) -> Iterator[str]:
    environment = manifests.environment(pod)
    try:
        settings = router_settings(manifests)
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
    if has_tls:
        yield from _calls_with_tls(manifests, environment)
    if settings.is_plaintext is has_tls:
        yield "speaks TLS with its callers where the replicas don't, or the other way round"
    pause = pod.main.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    if pod.spec.get("terminationGracePeriodSeconds", 30) < pause + settings.grace_seconds + MARGIN_SECONDS:
        yield "is killed before its grace time is over"


def _calls_with_tls(manifests: Manifests, environment: dict[str, str]) -> Iterator[str]:
    """Replicas are dialled by the pods' addresses, which no certificate names."""
    certificate = manifests.find("Certificate", "inference-tls")
    name = environment.get("SOFTPROMPT_TLS_SERVER_NAME")
    if certificate is None or name not in certificate["spec"]["dnsNames"]:
        yield f"expects certificates of {name}, which the replicas' do not name"
    wanted = ["CA_FILE"]
    if manifests.environment(manifests.pod("inference")).get("SOFTPROMPT_INFERENCE_TLS_CLIENT_CA_FILE"):
        wanted += ["CERTIFICATE_FILE", "KEY_FILE"]
    for variable in wanted:
        if not environment.get(f"SOFTPROMPT_TLS_{variable}"):
            yield f"has no SOFTPROMPT_TLS_{variable} to call replicas with TLS"
