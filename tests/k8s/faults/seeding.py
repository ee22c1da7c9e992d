"""How a fault is put into rendered manifests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.k8s.manifests import Manifests

Fault = Callable[[Manifests], Any]

Faults = dict[str, tuple[str, str, Fault]]
"""What happened: overlay, check that must catch it, the fault."""


def drop(items: list[Any], **match: Any) -> None:
    items[:] = [item for item in items if not match.items() <= item.items()]


def env(manifests: Manifests, service: str) -> dict[str, str]:
    return manifests.get("ConfigMap", f"{service}-settings")["data"]


def router_env(manifests: Manifests, name: str) -> dict[str, Any]:
    """A variable of the router's container."""
    found: dict[str, Any] = next(item for item in manifests.pod("router").main["env"] if item["name"] == name)
    return found


def rolling(manifests: Manifests) -> dict[str, Any]:
    return manifests.get("Deployment", "inference")["spec"]["strategy"]["rollingUpdate"]


def models(manifests: Manifests) -> dict[str, str]:
    return manifests.get("ConfigMap", "model-download")["data"]


def download(manifests: Manifests) -> dict[str, Any]:
    """The Job's container."""
    return manifests.pod("model-download").main


def wait(manifests: Manifests, service: str) -> dict[str, Any]:
    """The init container that waits for the models."""
    return manifests.pod(service).spec["initContainers"][0]


def models_mount(container: dict[str, Any]) -> dict[str, Any]:
    return next(mount for mount in container["volumeMounts"] if mount["name"] == "models")


def remove(manifests: Manifests, kind: str, name: str) -> None:
    manifests.objects.remove(manifests.get(kind, name))


def policy_rule(manifests: Manifests, name: str, direction: str) -> dict[str, Any]:
    return manifests.get("NetworkPolicy", name)["spec"][direction][0]


def worker(manifests: Manifests) -> dict[str, Any]:
    return manifests.get("RayCluster", "softprompt-ray")["spec"]["workerGroupSpecs"][0]


def cluster(manifests: Manifests) -> dict[str, Any]:
    return manifests.get("RayCluster", "softprompt-ray")


def head(manifests: Manifests) -> dict[str, Any]:
    return cluster(manifests)["spec"]["headGroupSpec"]
