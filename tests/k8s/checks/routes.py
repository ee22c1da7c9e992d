"""Routes of a Gateway: each gRPC service of the protocol goes to the Service whose pods serve it, and none is left out."""

from __future__ import annotations

from collections.abc import Iterator

from inference_service.servicer import SERVICE_NAME
from tests.k8s.manifests import Manifests
from trainer_service.server import SERVICE_NAMES

OWNERS = {**dict.fromkeys(SERVICE_NAMES, "trainer"), SERVICE_NAME: "inference"}


def check(manifests: Manifests) -> Iterator[str]:
    routed: dict[str, str] = {}
    for route in manifests.of("GRPCRoute"):
        for rule in route["spec"]["rules"]:
            for backend in rule["backendRefs"]:
                service = manifests.find("Service", backend["name"])
                if service is None or backend["port"] not in [port["port"] for port in service["spec"]["ports"] if port["name"] == "grpc"]:
                    yield f"{route['metadata']['name']}: no gRPC port {backend['port']} of a Service {backend['name']}"
            for match in rule["matches"]:
                routed[match["method"]["service"]] = rule["backendRefs"][0]["name"]
    if manifests.of("GRPCRoute") and routed != OWNERS:
        yield f"routes are {routed}, and should be {OWNERS}"
