"""Environment variables are real settings with values that the services would start with. Nothing else is in the
environment by mistake.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from unittest import mock

from pydantic_settings import BaseSettings

from inference_service.config import InferenceSettings
from shared.config import ConfigError, load_settings
from tests.k8s.checks.references import secrets
from tests.k8s.manifests import Manifests, Pod
from trainer_service.config import TrainerSettings

SERVICES: dict[str, tuple[type[BaseSettings], str]] = {
    "trainer": (TrainerSettings, "SOFTPROMPT_TRAINER_"),
    "inference": (InferenceSettings, "SOFTPROMPT_INFERENCE_"),
}
PREFIXES = {
    **{name: prefix for name, (_, prefix) in SERVICES.items()},
    **{name: f"SOFTPROMPT_{name.upper()}_" for name in ("gateway", "router")},
}
OTHER_VARIABLES = frozenset(
    {
        *("AWS_ACCESS_KEY_ID", "AWS_ENDPOINT", "AWS_REGION", "AWS_SECRET_ACCESS_KEY"),
        *("HF_ENDPOINT", "HF_HOME", "HF_HUB_OFFLINE", "HF_TOKEN", "MODELS", "POD_IP"),
        *("SOFTPROMPT_MODELS", "SOFTPROMPT_MODELS_FROM"),
        *(f"SOFTPROMPT_TLS{name}" for name in ("", "_CA_FILE", "_CERTIFICATE_FILE", "_KEY_FILE", "_SERVER_NAME")),
        *("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_worker_niceness"),
    }
)
SECRET_EXAMPLES = {"SOFTPROMPT_TRAINER_DATABASE_URL": "postgresql://user:password@database:5432/softprompt"}


def check(manifests: Manifests) -> Iterator[str]:
    for name in SERVICES:
        pod = manifests.pod(name)
        yield from (f"{name}: {problem}" for problem in _starts(manifests, pod))
    for pod in manifests.pods:
        for container in pod.containers:
            names = {*manifests.environment(pod, container), *(item["name"] for item in container.get("env", []))}
            prefix = PREFIXES.get(pod.name, "no prefix")
            unknown = {name for name in names if not name.startswith(prefix)} - OTHER_VARIABLES
            yield from (f"{pod.name}: the variable {name} is no setting" for name in sorted(unknown))
    for config_map in manifests.of("ConfigMap"):
        for key, value in config_map.get("data", {}).items():
            if re.search(r"(PASSWORD|SECRET|TOKEN|DATABASE_URL)", key):
                yield f"{key} belongs into a Secret, not into the ConfigMap {config_map['metadata']['name']}"
            if key.isupper() and value != value.strip():
                yield f"{key}={value!r} has blanks around it"


def settings_of(manifests: Manifests, pod: Pod) -> BaseSettings:
    """The settings object that the service would make of its environment. Raises ConfigError."""
    cls, prefix = SERVICES[pod.name]
    environment = {name: value for name, value in manifests.environment(pod).items() if name.startswith(prefix)}
    for item in pod.main.get("env", []):
        if item["name"] in SECRET_EXAMPLES and "secretKeyRef" in item.get("valueFrom", {}):
            environment[item["name"]] = SECRET_EXAMPLES[item["name"]]
    with mock.patch.dict(os.environ, environment, clear=True), mock.patch.object(os, "access", return_value=True):
        return load_settings(cls)


def _starts(manifests: Manifests, pod: Pod) -> Iterator[str]:
    try:
        settings = settings_of(manifests, pod)
    except ConfigError as error:
        yield str(error)
        return
    ports = {port["name"]: port["containerPort"] for port in pod.main["ports"]}
    for name, field in (("grpc", "port"), ("health", "health_port"), ("metrics", "metrics_port")):
        if getattr(settings, field) != ports.get(name):
            yield f"listens for {name} on {getattr(settings, field)}, the container's port is {ports.get(name)}"
    if getattr(settings, "host") != "0.0.0.0":  # noqa: B009 - the base class doesn't know it
        yield "listens on loopback only"
    if str(getattr(settings, "store_url")).startswith("s3://") and not _has_secret(manifests, pod, "AWS_ACCESS_KEY_ID"):  # noqa: B009
        yield "has no credentials for its object store"
    if getattr(settings, "log_format") != "json":  # noqa: B009
        yield "writes its log for people, not for machines"


def _has_secret(manifests: Manifests, pod: Pod, key: str) -> bool:
    known = secrets(manifests)
    return any(
        key in known.get(source.get("secretRef", {}).get("name", ""), ()) for source in pod.main.get("envFrom", [])
    )
