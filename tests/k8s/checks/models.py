"""Base models: on a claim, written only by the init containers that download them, the same ones for all, pinned, and
where the settings look for them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from shared.errors import InvalidInput
from softprompt.model_names import WantedModel, parse_models
from softprompt.models import CATALOGUE
from tests.k8s.checks.settings import SERVICES
from tests.k8s.manifests import Manifests, Object, Pod
from trainer_service.base_models import BaseModelSource

DIRECTORY = "/models"


def check(manifests: Manifests) -> Iterator[str]:
    lists = dict[str, str]()
    for pod in manifests.pods:
        if any(mount["mountPath"] == DIRECTORY for mount in pod.main.get("volumeMounts", [])) or pod.name in SERVICES:
            yield from (f"{pod.name}: {problem}" for problem in _volume(pod, pod.main, is_writer=False))
        for container in pod.spec.get("initContainers", []):
            if container["name"] == "model-download":
                yield from (f"{pod.name}: the download: {problem}" for problem in _download(manifests, pod, container))
                lists[pod.name] = manifests.environment(pod, container).get("MODELS", "")
    if lists and lists.keys() != SERVICES.keys():
        yield f"only {sorted(lists)} download models"
    if len(set(lists.values())) > 1:
        yield f"the pods download different models: {lists}"
    for name, models in lists.items():
        yield from (f"{name}: {problem}" for problem in _settings(manifests, manifests.pod(name), models))


def _volume(pod: Pod, container: Object, *, is_writer: bool) -> Iterator[str]:
    mount: Object = next((mount for mount in container.get("volumeMounts", []) if mount["mountPath"] == DIRECTORY), {})
    volume: Object = next((volume for volume in pod.spec.get("volumes", []) if volume["name"] == mount.get("name")), {})
    if "persistentVolumeClaim" not in volume:
        yield f"{DIRECTORY} is on no claim"
    if is_writer and (mount.get("readOnly") or volume.get("persistentVolumeClaim", {}).get("readOnly")):
        yield f"{DIRECTORY} is mounted read-only"
    if not is_writer and not mount.get("readOnly"):
        yield f"{DIRECTORY} can be written"


def _download(manifests: Manifests, pod: Pod, container: Object) -> Iterator[str]:
    environment = manifests.environment(pod, container)
    yield from _volume(pod, container, is_writer=True)
    if environment.get("SOFTPROMPT_MODELS") != DIRECTORY:
        yield f"goes to {environment.get('SOFTPROMPT_MODELS')}"
    if not environment.get("HF_HOME", "").startswith(f"{DIRECTORY}/."):
        yield f"the hub's client keeps its files in {environment.get('HF_HOME')}"
    if container.get("command") != ["softprompt", "models", "pull", "$(MODELS)"]:
        yield f"runs {container.get('command')}"
    if container["image"] != pod.main["image"]:
        yield f"runs in the image {container['image']}, its pod in {pod.main['image']}"
    for model in _parsed(environment.get("MODELS", "")):
        if model.name not in CATALOGUE and not (model.is_hub_id and re.fullmatch("[0-9a-f]{40}", model.revision)):
            yield f"{model} is neither catalogued nor a hub id at a commit"


def _settings(manifests: Manifests, pod: Pod, models: str) -> Iterator[str]:
    stored = {f"{DIRECTORY}/{model.directory}" for model in _parsed(models)}
    for name, value in manifests.environment(pod).items():
        if name.endswith(("_BASE_MODEL", "_BASE_MODELS")):
            sources = {BaseModelSource.parse(text.strip()).source for text in value.split(",")}
            yield from (f"{name} names {source}, which nothing downloads" for source in sorted(sources - stored))


def _parsed(models: str) -> list[WantedModel]:
    try:
        return parse_models([models])
    except InvalidInput as error:
        raise ValueError(str(error)) from error
