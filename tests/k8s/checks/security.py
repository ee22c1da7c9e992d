"""Kubernetes' restricted pod security standard, for pods that the API server's admission sees and for those inside
RayClusters, and beyond it: read-only roots, no account tokens, memory limits, images by version.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from tests.k8s.manifests import Manifests, Object, Pod

_VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
_IMAGE = re.compile(r"([a-z0-9.:/_-]+/)?softprompt-(trainer|inference):\d+\.\d+\.\d+(-cuda)?")


def check(manifests: Manifests) -> Iterator[str]:
    for pod in manifests.pods:
        yield from (f"{pod.name}: {problem}" for problem in _pod(pod))
        for container in pod.containers:
            yield from (f"{pod.name}/{container['name']}: {problem}" for problem in _container(container))
            yield from (f"{pod.name}/{container['name']}: {problem}" for problem in _resources(container))
            if not _IMAGE.fullmatch(container.get("image", "")):
                image = container.get("image")
                yield f"{pod.name}/{container['name']}: the image {image} is not one of ours by version"
    for cluster in manifests.of("RayCluster"):
        autoscaler = cluster["spec"].get("autoscalerOptions", {})
        yield from (f"autoscaler: {problem}" for problem in (*_container(autoscaler), *_resources(autoscaler)))
    for account in manifests.of("ServiceAccount"):
        if account.get("automountServiceAccountToken") is not False:
            yield f"the ServiceAccount {account['metadata']['name']} gives its token to pods"
    for namespace in manifests.of("Namespace"):
        if namespace["metadata"].get("labels", {}).get("pod-security.kubernetes.io/enforce") != "restricted":
            yield "the namespace does not enforce restricted pod security"
    if not manifests.of("Namespace"):
        yield "there is no Namespace"


def _pod(pod: Pod) -> Iterator[str]:
    context = pod.spec.get("securityContext", {})
    if context.get("runAsNonRoot") is not True or not context.get("runAsUser"):
        yield "may run as root"
    if context.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost"):
        yield "has no seccomp profile"
    if "fsGroup" not in context:
        yield "has no fsGroup: volumes would not be writable"
    yield from (f"uses {name}" for name in ("hostNetwork", "hostPID", "hostIPC") if pod.spec.get(name))
    for volume in pod.spec.get("volumes", []):
        if not volume.keys() - {"name"} <= _VOLUMES:
            yield f"the volume {volume['name']} is of a forbidden kind"
    needs_token = pod.name == "ray-head"  # its autoscaler calls the Kubernetes API
    if not needs_token and pod.spec.get("automountServiceAccountToken") is not False:
        yield "gets an account's token"
    if pod.spec.get("enableServiceLinks") is not False:
        yield "gets variables of all Services"


def _container(container: Object) -> Iterator[str]:
    context = container.get("securityContext", {})
    if context.get("allowPrivilegeEscalation") is not False or context.get("privileged"):
        yield "may gain privileges"
    if context.get("capabilities", {}).get("drop") != ["ALL"] or context.get("capabilities", {}).get("add"):
        yield "keeps capabilities"
    if context.get("readOnlyRootFilesystem") is not True:
        yield "can write its root file system"
    if context.get("runAsUser") == 0 or context.get("runAsNonRoot") is False:
        yield "runs as root"
    if any("hostPort" in port for port in container.get("ports", [])):
        yield "takes a port of the node"


def _resources(container: Object) -> Iterator[str]:
    requests, limits = (container.get("resources", {}).get(kind, {}) for kind in ("requests", "limits"))
    yield from (f"requests no {name}" for name in ("cpu", "memory") if name not in requests)
    if "memory" not in limits:
        yield "has no memory limit"
    elif "memory" in requests and bytes_of(limits["memory"]) < bytes_of(requests["memory"]):
        yield "has a memory limit below its request"


def bytes_of(quantity: str) -> int:
    number, unit = re.fullmatch(r"(\d+)(Ki|Mi|Gi|Ti)?", quantity).groups()
    return int(number) * 1024 ** ("", "Ki", "Mi", "Gi", "Ti").index(unit or "")


def cpus_of(quantity: str) -> float:
    return float(quantity[:-1]) / 1000 if quantity.endswith("m") else float(quantity)
