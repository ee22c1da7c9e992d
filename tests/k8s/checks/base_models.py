"""What `softprompt models manifests` makes: each base model of the file has one Deployment with its own model, place
and resources, an autoscaler that starts it at the first request, and Ray nodes on which its workers fit.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from shared.model.models_file import ModelEntry, ModelsFile, Resources
from softprompt.manifests import BASE_MODEL_LABEL, FILE
from tests.k8s.checks.security import bytes_of, cpus_of
from tests.k8s.manifests import Manifests, Object, Pod

_COPIED = ("Deployment", "ScaledObject", "PodDisruptionBudget")


def entries_of(manifests: Manifests) -> Mapping[str, ModelEntry]:
    """The models file in the manifests; nothing if there is none."""
    found = next((item["data"][FILE] for item in manifests.of("ConfigMap") if FILE in item.get("data", {})), None)
    if found is None:
        return {}
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / FILE
        path.write_text(found)
        return ModelsFile(path).entries


def of_one_model(manifests: Manifests, base_model: str) -> Manifests:
    """The manifests as they would be with this base model alone: all other checks know one Deployment `inference`."""
    made = manifests.copy()
    made.objects = [item for item in made.objects if _label(item) in (None, base_model)]
    for item in made.objects:
        if item["kind"] in _COPIED and _label(item) == base_model:
            item["metadata"]["name"] = "inference"
            if item["kind"] == "ScaledObject":
                item["spec"]["scaleTargetRef"]["name"] = "inference"
    return made


def check(manifests: Manifests) -> Iterator[str]:
    entries = entries_of(manifests)
    if not entries:
        return
    scaled = {_label(item): item for item in manifests.of("ScaledObject")}
    for id, entry in entries.items():
        pods = [pod for pod in manifests.pods if pod.labels.get(BASE_MODEL_LABEL) == id]
        if len(pods) != 1:
            yield f"{id}: {len(pods)} Deployments"
            continue
        yield from (f"{id}: {problem}" for problem in _deployment(manifests, pods[0], entry))
        if scaled:
            yield from (f"{id}: {problem}" for problem in _scaled(scaled.get(id), pods[0], entry))
    for name in ("trainer", "router"):
        if manifests.find("Deployment", name):
            yield from (f"{name}: {problem}" for problem in _reads_it(manifests, manifests.pod(name)))
    if len(entries) > 1 and manifests.find("Deployment", "gateway"):
        address = manifests.environment(manifests.pod("gateway")).get("SOFTPROMPT_GATEWAY_INFERENCE", "")
        if not address.startswith("router:"):
            yield f"the gateway calls {address}, where replicas of any base model may answer"
    for cluster in manifests.of("RayCluster"):
        groups = list(cluster["spec"]["workerGroupSpecs"])
        for id, entry in entries.items():
            if not any(_fits(group, entry) for group in groups):
                yield f"{id}: its workers fit on no group of Ray nodes"


def _deployment(manifests: Manifests, pod: Pod, entry: ModelEntry) -> Iterator[str]:
    environment, num_gpus = manifests.environment(pod), entry.replicas.num_gpus
    said = {
        "BASE_MODEL": entry.source,
        "BASE_MODEL_ID": entry.id,
        "DTYPE": entry.dtype,
        "WEIGHTS": entry.weights,
        "DEVICE": None if num_gpus is None else "cuda" if num_gpus else "cpu",
    }
    for variable, wanted in said.items():
        if wanted is not None and environment.get(f"SOFTPROMPT_INFERENCE_{variable}") != wanted:
            yield f"serves {environment.get(f'SOFTPROMPT_INFERENCE_{variable}')}, not {wanted}"
    if pod.owner["spec"]["selector"]["matchLabels"].get(BASE_MODEL_LABEL) != entry.id:
        yield "its Deployment selects the pods of other models"
    for constraint in pod.spec.get("topologySpreadConstraints", []):
        if constraint["labelSelector"]["matchLabels"].get(BASE_MODEL_LABEL) != entry.id:
            yield "is spread together with other models"
    budgets = [
        item["metadata"]["name"]
        for item in manifests.of("PodDisruptionBudget")
        if item["spec"]["selector"]["matchLabels"].items() <= pod.labels.items()
    ]
    if len(budgets) > 1:
        yield f"has several budgets, so nothing can evict it: {budgets}"
    yield from _place(pod.spec, pod.main, entry.replicas)
    probe, wanted_seconds = pod.main["startupProbe"], entry.replicas.launch_seconds
    if wanted_seconds and probe["failureThreshold"] * probe["periodSeconds"] < wanted_seconds:
        yield "is killed before it has loaded its model"


def _place(pod: Object, main: Object, wanted: Resources) -> Iterator[str]:
    limits = main["resources"].get("limits", {})
    if wanted.num_gpus is not None and float(limits.get("nvidia.com/gpu", 0)) < wanted.num_gpus:
        yield f"has {limits.get('nvidia.com/gpu', 0)} GPUs"
    if wanted.num_cpus is not None and cpus_of(main["resources"]["requests"]["cpu"]) < wanted.num_cpus:
        yield f"is sure of {main['resources']['requests']['cpu']} processors"
    if wanted.memory_bytes is not None and bytes_of(limits["memory"]) < wanted.memory_bytes:
        yield f"has {limits['memory']} of memory"
    if not wanted.node_labels.items() <= pod.get("nodeSelector", {}).items():
        yield f"runs on nodes with {pod.get('nodeSelector')}"
    for toleration in wanted.tolerations:
        if not any(given.get("key", "") == toleration.key for given in pod.get("tolerations", [])):
            yield f"does not tolerate {toleration.key}"


def _scaled(scaled: Object | None, pod: Pod, entry: ModelEntry) -> Iterator[str]:
    if scaled is None or scaled["spec"]["scaleTargetRef"]["name"] != pod.name:
        yield "is not scaled"
        return
    spec, replicas = scaled["spec"], entry.replicas
    if (spec["minReplicaCount"], spec["maxReplicaCount"]) != (
        replicas.least,
        replicas.most or max(1, replicas.least),
    ):
        yield f"has {spec['minReplicaCount']} to {spec['maxReplicaCount']} replicas"
    for trigger in spec["triggers"]:
        query = trigger["metadata"]["query"]
        if f'"{entry.id}"' not in query:
            yield "is scaled by the requests of other models"
        if replicas.least == 0:
            if float(trigger["metadata"].get("activationThreshold", 0)) >= 1:
                yield "is not started by its first request"
            if "softprompt_router_waiting" not in query or query.count("or vector(0)") < query.count("sum("):
                yield "is not started by requests that wait in the router, where no replica exports a series"


def _reads_it(manifests: Manifests, pod: Pod) -> Iterator[str]:
    path = manifests.environment(pod).get(f"SOFTPROMPT_{pod.name.upper()}_MODELS_FILE", "")
    mounts = {mount["mountPath"]: mount["name"] for mount in pod.main["volumeMounts"]}
    volume: Object = next(
        (one for one in pod.spec["volumes"] if one["name"] == mounts.get(path.removesuffix(f"/{FILE}"))), {}
    )
    content = manifests.find("ConfigMap", volume.get("configMap", {}).get("name", ""))
    if content is None or FILE not in content["data"]:
        yield f"reads {path or 'no models file'}"


def _fits(group: Object, entry: ModelEntry) -> bool:
    wanted, pod = entry.workers, group["template"]["spec"]
    limits, params = pod["containers"][0]["resources"]["limits"], group["rayStartParams"]
    resources = json.loads(json.loads(params.get("resources", '"{}"')))
    has = [
        "resources" not in group,  # KubeRay refuses it beside num-gpus in rayStartParams
        float(limits.get("nvidia.com/gpu", 0)) >= (wanted.num_gpus or 0),
        bytes_of(limits["memory"]) > (wanted.memory_bytes or 0),
        float(limits["cpu"]) >= (wanted.num_cpus or 0),
        wanted.accelerator_type is None or f"accelerator_type:{wanted.accelerator_type}" in resources,
        all(float(resources.get(name, 0)) >= amount for name, amount in wanted.ray_resources.items()),
        all(name in group.get("labels", {}) for name, value in wanted.ray_labels.items() if not value.startswith("!")),
        not list(_place(pod, pod["containers"][0], wanted)),
        group["maxReplicas"] >= (wanted.most or 1) * min(1.0, 1 if wanted.num_gpus is None else wanted.num_gpus or 1),
    ]
    return all(has)


def _label(item: Object) -> str | None:
    found: str | None = item["metadata"].get("labels", {}).get(BASE_MODEL_LABEL)
    return found
