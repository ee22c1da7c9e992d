"""Strict schemas: Kubernetes' own with no unknown field allowed, and those of the custom resources where they are at
hand.

Pod templates inside custom resources are always held against Kubernetes' own. The custom resources' schemas are
published by their projects and lie beside the repository, not in it; `CRDS` says whether they do.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
from jsonschema import Draft202012Validator
from referencing import Registry
from referencing.jsonschema import DRAFT202012

from tests.k8s.manifests import Manifests, Object, nulls

KUBERNETES = "v1.37.0"
CRDS = Path(__file__).parents[4] / "shared" / "crds"
WITHOUT_SCHEMA = frozenset({("cert-manager.io/v1", "Issuer"), ("gateway.networking.k8s.io/v1", "HTTPRoute")})
"""Checked by `references` and `http` alone."""

_URI = "urn:kubernetes"
_POD_TEMPLATE = "io.k8s.api.core.v1.PodTemplateSpec"


@cache
def _definitions() -> dict[str, Any]:
    folder = Path(kubernetes_validate.__file__).parent / "kubernetes-json-schema" / f"{KUBERNETES}-local-strict"
    return json.loads((folder / "_definitions.json").read_text())


@cache
def _kinds() -> dict[tuple[str, str, str], str]:
    return {
        (kind["group"], kind["version"], kind["kind"]): name
        for name, schema in _definitions()["$defs"].items()
        for kind in schema.get("x-kubernetes-group-version-kind", ())
    }


@cache
def _validator(definition: str) -> Draft202012Validator:
    registry: Registry[Any] = Registry().with_resource(_URI, DRAFT202012.create_resource(_definitions()))
    return Draft202012Validator({"$ref": f"{_URI}#/$defs/{definition}"}, registry=registry)


@cache
def _custom(group: str, version: str, kind: str) -> Draft202012Validator | None:
    file = CRDS / f"{kind.lower()}-{group.removesuffix('.k8s.io').removesuffix('.io').split('.')[0]}-{version}.json"
    return Draft202012Validator(_strict(json.loads(file.read_text()))) if file.is_file() else None


def _strict(schema: Any) -> Any:
    """No field that the schema doesn't name, as the API server's strict mode has it; `metadata` and what keeps unknown
    fields stay open.
    """
    if isinstance(schema, list):
        return [_strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: _strict(value) for key, value in schema.items()}
    if isinstance(made.get("properties"), dict) and not made.get("x-kubernetes-preserve-unknown-fields"):
        made.setdefault("additionalProperties", False)
    if made.get("properties", {}).get("kind") == {"type": "string"} and "metadata" in made["properties"]:
        made["properties"]["metadata"] = {"type": "object"}
    return made


def check(manifests: Manifests) -> Iterator[str]:
    names = [(item["apiVersion"], item["kind"], item["metadata"]["name"]) for item in manifests.objects]
    yield from (f"twice: {name}" for name in sorted({name for name in names if names.count(name) > 1}))
    for item in manifests.objects:
        about = f"{item['kind']} {item['metadata']['name']}"
        yield from (f"{about}{path}: null" for path in nulls(item))
        yield from (f"{about}{_path(error)}: {error.message[:200]}" for error in _errors(item))
        if item["metadata"].get("namespace", "softprompt") != "softprompt" or (
            item["kind"] != "Namespace" and "namespace" not in item["metadata"]
        ):
            yield f"{about}: not in the namespace softprompt"
    for cluster in manifests.of("RayCluster"):
        for group in (cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"]):
            for error in _validator(_POD_TEMPLATE).iter_errors(group["template"]):
                yield f"RayCluster pod{_path(error)}: {error.message[:200]}"


def _errors(item: Object) -> Iterator[Any]:
    group, _, version = item["apiVersion"].rpartition("/")
    definition = _kinds().get((group, version, item["kind"]))
    if definition is not None:
        yield from _validator(definition).iter_errors(item)
    elif (custom := _custom(group, version, item["kind"])) is not None:
        yield from custom.iter_errors(item)
    elif CRDS.is_dir() and (item["apiVersion"], item["kind"]) not in WITHOUT_SCHEMA:
        raise ValueError(f"no schema for {item['apiVersion']} {item['kind']}")


def _path(error: Any) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.absolute_path)
