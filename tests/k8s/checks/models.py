"""Base models: on a claim, written only by the one Job that downloads them, the same ones for all, pinned, complete
before a service starts, and where the settings look for them.
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
JOB, WAIT = "model-download", "model-wait"
MIN_RETRIES = 6
"""Fewer take less than ten minutes: a hub may be away for longer."""


def check(manifests: Manifests) -> Iterator[str]:
    for pod in manifests.pods:
        for container in pod.containers:
            mounts = any(mount["mountPath"] == DIRECTORY for mount in container.get("volumeMounts", []))
            if pod.name != JOB and (mounts or (pod.name in SERVICES and container is pod.main)):
                yield from (f"{pod.name}: {problem}" for problem in _volume(pod, container, is_writer=False))
            if pod.name != JOB and "pull" in container.get("command", []):
                yield f"{pod.name}: {container['name']} downloads, as does every other such pod at the same time"
    waits = {pod.name: container for pod in manifests.pods for container in pod.containers if container["name"] == WAIT}
    if (job := manifests.find("Job", JOB)) is None:
        yield from (f"{name} waits for models that nothing downloads" for name in waits)
        return
    yield from (f"the Job: {problem}" for problem in _job(manifests, job["spec"], manifests.pod(JOB)))
    models = manifests.environment(manifests.pod(JOB)).get("MODELS", "")
    for name in SERVICES:
        pod = manifests.pod(name)
        yield from (f"{name}: {problem}" for problem in _wait(manifests, pod, waits.get(name), models))
        yield from (f"{name}: {problem}" for problem in _settings(manifests, pod, models))


def _volume(pod: Pod, container: Object, *, is_writer: bool) -> Iterator[str]:
    mount: Object = next((mount for mount in container.get("volumeMounts", []) if mount["mountPath"] == DIRECTORY), {})
    volume: Object = next((volume for volume in pod.spec.get("volumes", []) if volume["name"] == mount.get("name")), {})
    if "persistentVolumeClaim" not in volume:
        yield f"{DIRECTORY} is on no claim"
    if is_writer and (mount.get("readOnly") or volume.get("persistentVolumeClaim", {}).get("readOnly")):
        yield f"{DIRECTORY} is mounted read-only"
    if not is_writer and not mount.get("readOnly"):
        yield f"{DIRECTORY} can be written"


def _job(manifests: Manifests, spec: Object, pod: Pod) -> Iterator[str]:
    environment = manifests.environment(pod)
    yield from _volume(pod, pod.main, is_writer=True)
    if environment.get("SOFTPROMPT_MODELS") != DIRECTORY:
        yield f"downloads to {environment.get('SOFTPROMPT_MODELS')}"
    if not environment.get("HF_HOME", "").startswith(f"{DIRECTORY}/."):
        yield f"the hub's client keeps its files in {environment.get('HF_HOME')}"
    if pod.main.get("command") != ["softprompt", "models", "pull", "$(MODELS)"]:
        yield f"runs {pod.main.get('command')}"
    if spec.get("parallelism", 1) != 1 or spec.get("completions", 1) != 1:
        yield "downloads in several pods"
    if pod.spec.get("restartPolicy") not in ("OnFailure", "Never") or spec.get("backoffLimit", 6) < MIN_RETRIES:
        yield "gives up when the hub is away for some minutes"
    if "ttlSecondsAfterFinished" not in spec:
        yield "stays after its end, and can't be applied again with other models"
    token: Object = next((item for item in pod.main.get("env", []) if item["name"] == "HF_TOKEN"), {})
    if not token.get("valueFrom", {}).get("secretKeyRef", {}).get("optional"):
        yield "has no token from a Secret that may be missing"
    for model in _parsed(environment.get("MODELS", "")):
        is_pinned = model.fingerprint or (model.is_hub_id and re.fullmatch("[0-9a-f]{40}", model.revision))
        if model.name not in CATALOGUE and not is_pinned:
            yield f"{model} is neither catalogued nor a hub id at a commit"


def _wait(manifests: Manifests, pod: Pod, container: Object | None, models: str) -> Iterator[str]:
    if container is None:
        yield "starts before its models are complete"
        return
    environment = manifests.environment(pod, container)
    if environment.get("MODELS") != models:
        yield f"waits for {environment.get('MODELS')}, and {models} are downloaded"
    if environment.get("SOFTPROMPT_MODELS") != DIRECTORY:
        yield f"waits for models in {environment.get('SOFTPROMPT_MODELS')}"
    if container.get("command") != ["softprompt", "models", "wait", "$(MODELS)"]:
        yield f"waits by {container.get('command')}"
    if container["image"] != pod.main["image"]:
        yield f"waits in the image {container['image']}, and runs in {pod.main['image']}"


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
