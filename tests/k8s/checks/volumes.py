"""Mounts and claims: every mount has its volume and every volume a mount, what a process writes is writable, and no
claim is asked for more than its access mode gives.
"""

from __future__ import annotations

from collections.abc import Iterator

from tests.k8s.manifests import Manifests, Object, Pod


def check(manifests: Manifests) -> Iterator[str]:
    for pod in manifests.pods:
        yield from (f"{pod.name}: {problem}" for problem in _mounts(pod))
        yield from (f"{pod.name}: {problem}" for problem in _paths(manifests, pod))
    yield from _access(manifests)
    used = {claim for pod in manifests.pods for claim, _ in _claims(pod)}
    yield from (f"no pod mounts the claim {name}" for name in _names(manifests) - used)


def _names(manifests: Manifests) -> set[str]:
    return {item["metadata"]["name"] for item in manifests.of("PersistentVolumeClaim")}


def _mounts(pod: Pod) -> Iterator[str]:
    volumes = {volume["name"] for volume in pod.spec.get("volumes", [])}
    mounted = set()
    for container in (*pod.containers, *_sidecars(pod)):
        paths = [mount["mountPath"] for mount in container.get("volumeMounts", [])]
        yield from (f"{container['name']} mounts twice at {path}" for path in set(paths) if paths.count(path) > 1)
        for mount in container.get("volumeMounts", []):
            mounted.add(mount["name"])
            if mount["name"] not in volumes:
                yield f"{container['name']} mounts {mount['name']}, which is no volume"
            if "subPath" in mount:
                yield f"{container['name']} mounts {mount['name']} by subPath: it would never change"
        if "/tmp" not in paths:
            yield f"{container['name']} has no /tmp to write to"
    yield from (f"nothing mounts the volume {name}" for name in volumes - mounted)
    for volume in pod.spec.get("volumes", []):
        if "emptyDir" in volume and "sizeLimit" not in volume["emptyDir"]:
            yield f"the volume {volume['name']} has no size limit"


def _sidecars(pod: Pod) -> list[Object]:
    options = pod.owner["spec"].get("autoscalerOptions") if pod.name == "ray-head" else None
    return [{"name": "autoscaler", **options}] if options else []


def _paths(manifests: Manifests, pod: Pod) -> Iterator[str]:
    """Directories that settings name are mounted, and writable where they are written."""
    mounts = {mount["mountPath"]: mount for mount in pod.main.get("volumeMounts", [])}
    for name, value in manifests.environment(pod).items():
        written = name.endswith(("_DATA_DIR", "_STORE_URL"))
        if not value.startswith("/") or not (written or "BASE_MODEL" in name or name.endswith("_FILE")):
            continue
        mount = next((mount for path, mount in mounts.items() if value == path or value.startswith(f"{path}/")), None)
        if mount is None:
            yield f"{name}={value}: nothing is mounted there"
        elif written and mount.get("readOnly"):
            yield f"{name}={value}: mounted read-only"


def _claims(pod: Pod) -> list[tuple[str, Object]]:
    return [
        (volume["persistentVolumeClaim"]["claimName"], volume)
        for volume in pod.spec.get("volumes", [])
        if "persistentVolumeClaim" in volume
    ]


def _access(manifests: Manifests) -> Iterator[str]:
    """A claim of several pods is ReadWriteMany, unless all of them are bound to one node."""
    users: dict[str, list[Pod]] = {}
    for pod in manifests.pods:
        for claim, _ in _claims(pod):
            users.setdefault(claim, []).append(pod)
    for item in manifests.of("PersistentVolumeClaim"):
        name, pods = item["metadata"]["name"], users.get(item["metadata"]["name"], [])
        if item["spec"]["accessModes"] == ["ReadWriteMany"] or not pods:
            continue
        apart = [pod.name for pod in pods if not _bound_to(pod, pods[-1])]
        many = [
            pod.name for pod in pods if pod.owner["kind"] != "Deployment" or pod.owner["spec"].get("replicas", 2) > 1
        ]
        claim = f"the claim {name} is {item['spec']['accessModes'][0]}"
        if len(pods) > 1 and (apart or any(pod.owner["kind"] not in ("Deployment", "Job") for pod in pods)):
            yield f"{claim} and mounted by pods on several nodes: {[pod.name for pod in pods]}"
        if many and len(pods) == 1:
            yield f"{claim} and mounted by several replicas of {many[0]}"
        if len(pods) == 1 and pods[0].owner["spec"].get("strategy", {}).get("type") != "Recreate":
            yield f"{claim}: the next pod of {pods[0].name} would wait for the one before"


def _bound_to(pod: Pod, anchor: Pod) -> bool:
    if pod.name == anchor.name:
        return True
    terms = (
        pod.spec.get("affinity", {}).get("podAffinity", {}).get("requiredDuringSchedulingIgnoredDuringExecution", [])
    )
    return any(
        term["topologyKey"] == "kubernetes.io/hostname"
        and term["labelSelector"]["matchLabels"].items() <= anchor.labels.items()
        for term in terms
    )
