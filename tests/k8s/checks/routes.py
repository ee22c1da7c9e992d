"""Routes of a Gateway: each gRPC service of the protocol goes to the Service whose pods serve it, none is left out, and
none is open: the pods behind know their callers.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath

from inference_service.servicer import SERVICE_NAME
from tests.k8s.checks.references import secrets
from tests.k8s.manifests import Manifests, Object, Pod
from trainer_service.parts import SERVICE_NAMES

OWNERS = {**dict.fromkeys(SERVICE_NAMES, "trainer"), SERVICE_NAME: "inference"}


def check(manifests: Manifests) -> Iterator[str]:
    routed: dict[str, str] = {}
    for route in manifests.of("GRPCRoute"):
        for rule in route["spec"]["rules"]:
            for backend in rule["backendRefs"]:
                service = manifests.find("Service", backend["name"])
                if service is None or backend["port"] not in [
                    port["port"] for port in service["spec"]["ports"] if port["name"] == "grpc"
                ]:
                    yield f"{route['metadata']['name']}: no gRPC port {backend['port']} of a Service {backend['name']}"
                    continue
                for pod in manifests.selected(service["spec"]["selector"]):
                    pod = manifests.pod("inference") if pod.name == "router" else pod  # which knows no callers
                    yield from (
                        f"{route['metadata']['name']}: {pod.name} {problem}" for problem in _open(manifests, pod)
                    )
            for match in rule["matches"]:
                routed[match["method"]["service"]] = rule["backendRefs"][0]["name"]
    owners = OWNERS | ({SERVICE_NAME: "router"} if manifests.find("Deployment", "router") else {})
    if manifests.of("GRPCRoute") and routed != owners:
        yield f"routes are {routed}, and should be {owners}"


def _open(manifests: Manifests, pod: Pod) -> Iterator[str]:
    """Ways to call a service from outside without authentication."""
    path = PurePosixPath(manifests.environment(pod).get(f"SOFTPROMPT_{pod.name.upper()}_CALLERS_FILE", ""))
    if not path.name:
        yield "has no callers file: every caller that passes the Gateway has all permissions"
        return
    mounted = [mount["name"] for mount in pod.main["volumeMounts"] if PurePosixPath(mount["mountPath"]) == path.parent]
    volume: Object = next((volume for volume in pod.spec["volumes"] if volume["name"] in mounted), {})
    secret = volume.get("secret", {})
    if path.name not in secrets(manifests).get(secret.get("secretName", ""), ()):
        yield f"has its callers file {path} from a Secret that docs/kubernetes.md does not describe"
    if secret.get("optional"):
        yield "starts without the Secret of its callers file"
