"""Kubernetes objects for each base model of a models file, made of a rendered overlay.

The overlay has one Deployment `inference` with everything that its components add: GPUs, certificates, callers, an
object store. Each base model gets a copy of it with its own model, resources and place, and so do the objects that
belong to the Deployment. Nothing is written twice, and a component that changes changes every copy.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from shared.errors import InvalidInput
from shared.model.models_file import ModelEntry, Resources

Object = dict[str, Any]

BASE_MODEL_LABEL = "softprompt.io/base-model"
CONFIG_MAP, DIRECTORY, FILE = "softprompt-models", "/etc/softprompt", "models.json"
_GPU = "nvidia.com/gpu"
_LABEL = re.compile(r"[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?")
_NO_TEXT = re.compile(r"[yYnN]|0o[0-7_]+|[-+]?[0-9][0-9_]*(\.[0-9_]*)?([eE][-+]?[0-9]+)?")
"""Texts that Kubernetes' YAML parser would read as a truth value or a number, other than the one that writes them."""
_RAY_BYTES = 3 << 30
"""Memory of a Ray node beside its worker: Ray's processes, and its object store in /dev/shm."""


def of_models(objects: Sequence[Object], entries: Mapping[str, ModelEntry], content: str) -> list[Object]:
    """The overlay's objects with one Deployment for each base model. `content`: the text of the models file.

    Raises InvalidInput if the overlay lacks what a model needs.
    """
    overlay = _Overlay(objects)
    with _reading(overlay.inference):
        overlay.check(entries)
        config_map = _config_map(overlay, content)
    names = _names(entries)
    found = list[Object]()
    for item in objects:
        kind, name = item["kind"], item["metadata"]["name"]
        with _reading(item):
            if (kind, name) in _COPIES:
                found += [_COPIES[kind, name](item, entry, names[id], overlay) for id, entry in entries.items()]
            elif kind == "RayCluster":
                found.append(_ray_cluster(item, entries, names))
            elif kind == "Deployment" and name in ("trainer", "router", "gateway"):
                found.append(_reader(item, overlay, entries, content))
            else:
                found.append(item)
    return [*found, config_map]


def as_yaml(objects: Sequence[Object]) -> str:
    """The objects as YAML documents, without anchors."""
    import yaml

    class Dumper(yaml.SafeDumper):  # type: ignore[misc]
        def ignore_aliases(self, data: object) -> bool:
            return True

    def text(dumper: yaml.SafeDumper, value: str) -> yaml.Node:
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, '"' if _NO_TEXT.fullmatch(value) else None)

    Dumper.add_representer(str, text)
    return str(yaml.dump_all(objects, Dumper=Dumper, sort_keys=False))


def why_no_object(document: object) -> str:
    """Why a YAML document is not a Kubernetes object with a kind and a name; empty if it is one."""
    if not isinstance(document, dict):
        return f"is a {'list' if isinstance(document, list) else 'scalar'}"
    if not isinstance(document.get("kind"), str):
        return "has no kind"
    metadata = document.get("metadata")
    return "" if isinstance(metadata, dict) and isinstance(metadata.get("name"), str) else "has no metadata with a name"


@contextmanager
def _reading(item: Object | None) -> Iterator[None]:
    """Names the object if it lacks a part that the overlays of this project have."""
    try:
        yield
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        assert item is not None
        lacks = "a part is missing or has another type"
        if isinstance(error, KeyError):
            lacks = f"{error.args[0]} is missing"
        what = f"{item['kind']} {item['metadata']['name']}"
        raise _refused(f"{what}: {lacks}; give what `kubectl kustomize OVERLAY` prints") from error


def _refused(reason: str) -> InvalidInput:
    return InvalidInput.of("overlay", reason)


class _Overlay:
    def __init__(self, objects: Sequence[Object]) -> None:
        self._objects = objects
        self.inference = self.find("Deployment", "inference")
        self.is_scaled = self.find("ScaledObject", "inference") is not None
        self.has_router = self.find("Deployment", "router") is not None

    def find(self, kind: str, name: str) -> Object | None:
        return next((o for o in self._objects if o.get("kind") == kind and o["metadata"]["name"] == name), None)

    def check(self, entries: Mapping[str, ModelEntry]) -> None:
        """Raises InvalidInput."""
        if self.inference is None:
            raise _refused("has no Deployment inference: give what `kubectl kustomize OVERLAY` prints")
        has_gpu = _GPU in _main(self.inference)["resources"].get("limits", {})
        if len(entries) > 1 and not self.has_router:
            raise _refused("needs components/router: the file has several models")
        for id, entry in entries.items():
            if entry.replicas.least == 0 and not (self.is_scaled and self.has_router):
                raise _refused(f"needs components/keda and components/router: replicas.least of {id} is 0")
            if entry.replicas.num_gpus and not has_gpu:
                raise _refused(f"needs components/gpu: replicas.num_gpus of {id} is set")


def _names(entries: Mapping[str, ModelEntry]) -> dict[str, str]:
    """What the objects of each model have in their names. Raises InvalidInput."""
    found = {id: re.sub("[^a-z0-9]+", "-", id).strip("-") for id in entries}
    for id, name in found.items():
        if not _LABEL.fullmatch(id) or len(name) > 40 or list(found.values()).count(name) > 1:
            raise InvalidInput.of(
                "file",
                f"the id {id!r} can't be part of the objects' names: it must begin and end with a letter or digit, "
                "have at most 40 characters, and differ from other ids in letters or digits",
            )
    return found


def _deployment(item: Object, entry: ModelEntry, name: str, overlay: _Overlay) -> Object:
    made = _named(item, entry, name)
    spec, replicas = made["spec"], entry.replicas
    spec["selector"]["matchLabels"][BASE_MODEL_LABEL] = entry.id
    spec["template"]["metadata"]["labels"][BASE_MODEL_LABEL] = entry.id
    spec.pop("replicas", None)
    if not overlay.is_scaled:
        spec["replicas"] = replicas.least
    pod, main = spec["template"]["spec"], _main(made)
    for constraint in pod.get("topologySpreadConstraints", []):
        constraint["labelSelector"]["matchLabels"][BASE_MODEL_LABEL] = entry.id
    device = None if replicas.num_gpus is None else "cuda" if replicas.num_gpus else "cpu"
    _set_environment(
        main,
        SOFTPROMPT_INFERENCE_BASE_MODEL=entry.source,
        SOFTPROMPT_INFERENCE_BASE_MODEL_ID=entry.id,
        SOFTPROMPT_INFERENCE_DTYPE=entry.dtype,
        SOFTPROMPT_INFERENCE_WEIGHTS=entry.weights,
        SOFTPROMPT_INFERENCE_DEVICE=device,
    )
    if device == "cpu":  # as in the base: nothing is scarce, so a new replica starts before an old one stops
        main["resources"].get("limits", {}).pop(_GPU, None)
        spec["strategy"] = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}
    _place(pod, main, replicas)
    if replicas.launch_seconds:
        probe = main["startupProbe"]
        probe["failureThreshold"] = math.ceil(replicas.launch_seconds / probe["periodSeconds"])
    return made


def _scaled_object(item: Object, entry: ModelEntry, name: str, overlay: _Overlay) -> Object:
    made = _named(item, entry, name)
    spec, replicas = made["spec"], entry.replicas
    most = replicas.most or max(1, replicas.least)
    spec["scaleTargetRef"]["name"] = f"inference-{name}"
    spec["minReplicaCount"], spec["maxReplicaCount"] = replicas.least, most
    if replicas.least == 0:  # a replica that still loads is not scaled away
        spec["cooldownPeriod"] = max(spec["cooldownPeriod"], math.ceil(replicas.launch_seconds or 0) + 60)
    if "fallback" in spec:
        spec["fallback"]["replicas"] = max(1, replicas.least)
    for trigger in spec["triggers"]:
        if trigger["type"] == "prometheus":
            # More than 0: the first request of a model without replicas starts one.
            trigger["metadata"].update(query=query(entry.id, made["metadata"]["namespace"]), activationThreshold="0")
    return made


def query(base_model: str, namespace: str) -> str:
    """The requests that run or wait for a base model, in PromQL. A series that is missing (no replicas) counts as 0."""
    of_pods = f'namespace="{namespace}",softprompt_io_base_model="{base_model}"'
    of_router = f'namespace="{namespace}",base_model="{base_model}"'
    terms = (
        f"softprompt_inference_requests_running{{{of_pods}}}",
        f"softprompt_inference_requests_waiting{{{of_pods}}}",
        f"max_over_time(softprompt_router_waiting{{{of_router}}}[1m])",  # callers with short deadlines come and go
    )
    return " + ".join(f"(sum({term}) or vector(0))" for term in terms)


def _budget(item: Object, entry: ModelEntry, name: str, overlay: _Overlay) -> Object:
    made = _named(item, entry, name)
    made["spec"]["selector"]["matchLabels"][BASE_MODEL_LABEL] = entry.id
    return made


_COPIES = {
    ("Deployment", "inference"): _deployment,
    ("ScaledObject", "inference"): _scaled_object,
    ("PodDisruptionBudget", "inference"): _budget,
}


def _ray_cluster(item: Object, entries: Mapping[str, ModelEntry], names: Mapping[str, str]) -> Object:
    """One group of Ray nodes for each model. A worker may run in any group that has what it asks for."""
    made = copy.deepcopy(item)
    first = made["spec"]["workerGroupSpecs"][0]
    made["spec"]["workerGroupSpecs"] = [_ray_group(first, entry, names[id]) for id, entry in entries.items()]
    return made


def _ray_group(item: Object, entry: ModelEntry, name: str) -> Object:
    made, workers = copy.deepcopy(item), entry.workers
    made["groupName"] = name
    pod = made["template"]["spec"]
    main, params = pod["containers"][0], made["rayStartParams"]
    num_gpus = float(params["num-gpus"]) if workers.num_gpus is None else workers.num_gpus
    per_node = max(1, math.floor(1 / num_gpus)) if 0 < num_gpus < 1 else 1
    made["maxReplicas"] = math.ceil((workers.most or made["maxReplicas"]) / per_node)
    params["num-gpus"] = str(math.ceil(num_gpus))
    main["resources"]["limits"][_GPU] = params["num-gpus"]
    if num_gpus == 0:
        del main["resources"]["limits"][_GPU]
    if workers.num_cpus:
        num_cpus = str(math.ceil(workers.num_cpus * per_node))
        main["resources"]["requests"]["cpu"] = main["resources"]["limits"]["cpu"] = num_cpus
    _place(pod, main, workers.model_copy(update={"num_gpus": None, "num_cpus": None}), _RAY_BYTES, per_node)
    resources = {key: math.ceil(amount * per_node) for key, amount in workers.ray_resources.items()}
    if workers.accelerator_type:
        resources[f"accelerator_type:{workers.accelerator_type}"] = 1
    labels = {key: label for key, value in workers.ray_labels.items() if (label := _label(value))}
    if resources:  # a string in a shell's command; beside num-gpus, KubeRay refuses the group's own `resources`
        params["resources"] = json.dumps(json.dumps(resources))
    if labels:
        made["labels"] = labels
    return made


def _label(selector: str) -> str:
    """A label value that a Ray selector accepts; empty if the selector only excludes values."""
    return "" if selector.startswith("!") else re.sub(r"^in\(([^,)]*).*$", r"\1", selector)


def _place(pod: Object, main: Object, wanted: Resources, extra_bytes: int = 0, times: int = 1) -> None:
    """The resources of a pod's container, and the nodes on which it may run."""
    if wanted.num_gpus:
        main["resources"]["limits"][_GPU] = str(math.ceil(wanted.num_gpus))
    if wanted.num_cpus:
        main["resources"]["requests"]["cpu"] = f"{math.ceil(wanted.num_cpus * 1000)}m"
    if wanted.memory_bytes:
        memory = f"{math.ceil((wanted.memory_bytes * times + extra_bytes) / (1 << 20))}Mi"
        main["resources"]["requests"]["memory"] = main["resources"]["limits"]["memory"] = memory
    if wanted.node_labels:
        pod["nodeSelector"] = {**pod.get("nodeSelector", {}), **wanted.node_labels}
    given = [{key: value for key, value in dict(one).items() if value} for one in wanted.tolerations]
    if added := [one for one in given if one not in pod.get("tolerations", [])]:
        pod["tolerations"] = [*pod.get("tolerations", []), *added]


def _reader(item: Object, overlay: _Overlay, entries: Mapping[str, ModelEntry], content: str) -> Object:
    """A Deployment that reads the file, or that must send requests to the router."""
    made, name = copy.deepcopy(item), item["metadata"]["name"]
    main = _main(made)
    if name == "gateway":
        if overlay.has_router:
            _set_environment(main, SOFTPROMPT_GATEWAY_INFERENCE="router:50053")
        return made
    _set_environment(main, **{f"SOFTPROMPT_{name.upper()}_MODELS_FILE": f"{DIRECTORY}/{FILE}"})
    if name == "trainer":
        sources = ",".join(f"{id}={entry.source}" for id, entry in entries.items())
        _set_environment(main, SOFTPROMPT_TRAINER_BASE_MODELS=sources)
    main.setdefault("volumeMounts", []).append({"name": "base-models", "mountPath": DIRECTORY, "readOnly": True})
    volumes = made["spec"]["template"]["spec"].setdefault("volumes", [])
    volumes.append({"name": "base-models", "configMap": {"name": _config_map_name(content)}})
    return made


def _config_map(overlay: _Overlay, content: str) -> Object:
    assert overlay.inference is not None
    metadata = {"name": _config_map_name(content), "namespace": overlay.inference["metadata"]["namespace"]}
    metadata["labels"] = {"app.kubernetes.io/part-of": "softprompt"}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {FILE: content}}


def _config_map_name(content: str) -> str:
    """A name that changes with the content, so that its readers restart."""
    return f"{CONFIG_MAP}-{hashlib.sha256(content.encode()).hexdigest()[:10]}"


def _named(item: Object, entry: ModelEntry, name: str) -> Object:
    made = copy.deepcopy(item)
    made["metadata"]["name"] = f"inference-{name}"
    made["metadata"].setdefault("labels", {})[BASE_MODEL_LABEL] = entry.id
    return made


def _main(deployment: Object) -> Object:
    found: Object = deployment["spec"]["template"]["spec"]["containers"][0]
    return found


def _set_environment(container: Object, **values: str | None) -> None:
    """Variables of the container itself, which win over those of its ConfigMaps. None: unchanged."""
    given = {name: value for name, value in values.items() if value is not None}
    kept: Iterator[Object] = (item for item in container.get("env", []) if item["name"] not in given)
    container["env"] = [*kept, *({"name": name, "value": value} for name, value in given.items())]
