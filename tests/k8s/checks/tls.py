"""Certificates have every name that callers dial, Services don't promise plaintext where TLS is spoken, a renewal
splits no trust.
"""

from __future__ import annotations

from collections.abc import Iterator

from tests.k8s.checks.router import router_settings
from tests.k8s.checks.settings import SERVICES, settings_of
from tests.k8s.manifests import Manifests, Object


def check(manifests: Manifests) -> Iterator[str]:
    for name in SERVICES:
        certificate = manifests.find("Certificate", f"{name}-tls")
        plaintext = bool(getattr(settings_of(manifests, manifests.pod(name)), "is_plaintext"))  # noqa: B009 - the base class doesn't know it
        if not plaintext and certificate is None:
            yield f"nothing issues a certificate for {name}"
        for service in manifests.of("Service"):
            if [pod.name for pod in manifests.selected(service["spec"]["selector"])] == [name]:
                yield from _protocol(service, plaintext)
                if certificate is not None:
                    yield from _names(certificate["spec"], service["metadata"]["name"])
    if manifests.find("Deployment", "router"):
        settings = router_settings(manifests)
        certificate = manifests.find("Certificate", "router-tls")
        if not settings.is_plaintext and certificate is None:
            yield "nothing issues a certificate for router"
        yield from _protocol(manifests.get("Service", "router"), settings.is_plaintext)
        if certificate is not None:
            yield from _names(certificate["spec"], "router")
    for certificate in manifests.of("Certificate"):
        spec = certificate["spec"]
        if spec.get("isCA") and spec["privateKey"].get("rotationPolicy") != "Never":
            yield f"{spec['commonName']} is renewed with another key, which callers with the old ca.crt don't trust"


def _protocol(service: Object, plaintext: bool) -> Iterator[str]:
    said = next(port.get("appProtocol") for port in service["spec"]["ports"] if port["name"] == "grpc")
    if (said == "kubernetes.io/h2c") != plaintext:
        spoken = "plaintext" if plaintext else "TLS"
        yield f"Service {service['metadata']['name']} says {said} of a port that speaks {spoken}"


def _names(certificate: Object, service: str) -> Iterator[str]:
    dialled = {service, f"{service}.softprompt", f"{service}.softprompt.svc", f"{service}.softprompt.svc.cluster.local"}
    for name in sorted((dialled | {"localhost"}) - set(certificate["dnsNames"])):
        yield f"the certificate of {certificate['commonName']} does not name {name}"
    if "127.0.0.1" not in certificate.get(
        "ipAddresses", ()
    ):  # what the client dials by default, through a port-forward
        yield f"the certificate of {certificate['commonName']} does not name 127.0.0.1"
