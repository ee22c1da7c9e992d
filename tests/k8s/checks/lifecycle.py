"""How pods come and go: time to drain before the kill, rollouts that suit the job database, budgets that block no node
forever.
"""

from __future__ import annotations

from collections.abc import Iterator

from tests.k8s.checks.settings import SERVICES, settings_of
from tests.k8s.manifests import Manifests, Object, Pod

MARGIN_SECONDS = {"trainer": 40, "inference": 10}
"""Beyond the grace time: the trainer then leaves Ray, which may take 30 seconds."""


def check(manifests: Manifests) -> Iterator[str]:
    for name in SERVICES:
        yield from (f"{name}: {problem}" for problem in _grace(manifests, name))
    deployments = {item["metadata"]["name"]: item["spec"] for item in manifests.of("Deployment")}
    yield from (f"trainer: {problem}" for problem in _trainer(manifests, deployments["trainer"]))
    scaled = {item["spec"]["scaleTargetRef"]["name"]: item["spec"] for item in manifests.of("ScaledObject")}
    for name, spec in deployments.items():
        replicas = scaled[name]["minReplicaCount"] if name in scaled else spec.get("replicas", 1)
        if spec["strategy"]["type"] == "RollingUpdate" or name == "inference":
            yield from (f"{name}: {problem}" for problem in _rollout(manifests.pod(name), spec, replicas))
    for name, spec in deployments.items():
        if (name in scaled) == ("replicas" in spec):
            yield f"{name}: the number of replicas is set {'twice' if name in scaled else 'nowhere'}"
        if (name in scaled or spec.get("replicas", 1) > 1) and not _spread(manifests, name):
            yield f"{name}: all replicas may be on one node"
    for budget in manifests.of("PodDisruptionBudget"):
        yield from _budget(manifests, budget)


def _rollout(pod: Pod, spec: Object, replicas: int) -> Iterator[str]:
    """Without GPUs a new replica is ready before an old one goes. With GPUs it is the other way round, so that no spare
    one is needed.
    """
    rolling = spec["strategy"].get("rollingUpdate", {})
    surge, unavailable = rolling.get("maxSurge"), rolling.get("maxUnavailable")
    if not _has_gpu(pod):
        if spec["strategy"]["type"] != "RollingUpdate" or unavailable != 0 or surge in (0, "0%", None):
            yield "a rollout takes a replica away before another is ready"
        return
    if surge != 0:
        yield "a rollout waits for a GPU that no replica has"
    if unavailable != 1:
        yield f"a rollout takes {unavailable} replicas with their GPUs away at once"
    if replicas == 1:
        yield "a rollout takes the only replica away"


def _has_gpu(pod: Pod) -> bool:
    resources = [container.get("resources", {}) for container in pod.containers]
    return any("nvidia.com/gpu" in given.get(kind, {}) for given in resources for kind in ("requests", "limits"))


def _grace(manifests: Manifests, name: str) -> Iterator[str]:
    pod = manifests.pod(name)
    pause = pod.main.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    if pause < 3:
        yield "stops before endpoints have forgotten it"
    needed = pause + float(getattr(settings_of(manifests, pod), "grace_seconds")) + MARGIN_SECONDS[name]  # noqa: B009
    if pod.spec.get("terminationGracePeriodSeconds", 30) < needed:
        yield f"is killed after {pod.spec.get('terminationGracePeriodSeconds', 30)} s, and needs up to {needed}"


def _spread(manifests: Manifests, name: str) -> bool:
    pod = manifests.pod(name)
    return any(
        constraint["topologyKey"] == "kubernetes.io/hostname"
        and constraint["labelSelector"]["matchLabels"].items() <= pod.labels.items()
        and "app.kubernetes.io/name"
        in {*constraint["labelSelector"]["matchLabels"], *constraint.get("matchLabelKeys", ())}  # not all pods
        for constraint in pod.spec.get("topologySpreadConstraints", [])
    )


def _on_sqlite(manifests: Manifests) -> bool:
    return not any(
        item["name"] == "SOFTPROMPT_TRAINER_DATABASE_URL" for item in manifests.pod("trainer").main.get("env", [])
    )


def _trainer(manifests: Manifests, spec: Object) -> Iterator[str]:
    if _on_sqlite(manifests):
        if spec["strategy"] != {"type": "Recreate"}:
            yield "on SQLite, two pods at a time during a rollout"
        if spec.get("replicas") != 1:
            yield "on SQLite, other than one replica"
    elif spec["strategy"]["type"] != "RollingUpdate" or spec.get("replicas", 1) < 2:
        yield "on PostgreSQL, and yet a single one"


def _budget(manifests: Manifests, budget: Object) -> Iterator[str]:
    name, spec = budget["metadata"]["name"], budget["spec"]
    for pod in manifests.selected(spec["selector"]["matchLabels"]):
        replicas = pod.owner["spec"].get("replicas") or min(
            item["spec"]["minReplicaCount"] for item in manifests.of("ScaledObject")
        )
        keeps = spec.get("minAvailable", replicas - int(spec.get("maxUnavailable", 0)))
        if keeps >= replicas or pod.owner["spec"]["strategy"]["type"] == "Recreate":
            yield f"PodDisruptionBudget {name} lets no node with {pod.name} be drained"
