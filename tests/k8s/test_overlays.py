"""Every overlay builds, and nothing is wrong with what it builds."""

from __future__ import annotations

import pytest

from tests.k8s.checks import problems
from tests.k8s.checks.schemas import CRDS
from tests.k8s.manifests import K8S, OVERLAYS, render


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_nothing_is_wrong_with_it(overlay: str) -> None:
    assert problems(render(overlay)) == {}


def test_the_overlays_are_those_that_are_promised() -> None:
    assert OVERLAYS == ["gpu", "gpu-s3", "ha", "local-cpu"]


def test_every_component_is_in_some_overlay() -> None:
    components = {path.parent.name for path in (K8S / "components").glob("*/kustomization.yaml")}
    used = {name for name in components for overlay in OVERLAYS if f"components/{name}\n" in _kustomization(overlay)}
    assert used == components
    assert components == {
        *(
            "gpu",
            "ray",
            "s3",
            "postgres",
            "netpol",
            "pdb",
            "monitoring",
            "keda",
            "gateway",
            "http",
            "router",
            "mtls",
            "model-download",
            "callers",
            "tracing",
        ),
    }


def test_the_base_needs_no_custom_resources() -> None:
    kinds = {item["kind"] for item in render("local-cpu").objects}
    assert kinds == {
        "Namespace",
        "ServiceAccount",
        "Service",
        "Deployment",
        "PersistentVolumeClaim",
        "ConfigMap",
        "Job",
    }


def test_custom_resources_are_held_against_their_schemas() -> None:
    if not CRDS.is_dir():
        pytest.skip(
            f"LOUD: no schemas of custom resources ({CRDS}); only pod templates inside them were checked strictly"
        )
    kinds = {item["kind"] for overlay in OVERLAYS for item in render(overlay).objects}
    assert kinds >= {
        "RayCluster",
        "ServiceMonitor",
        "PrometheusRule",
        "ScaledObject",
        "GRPCRoute",
        "HTTPRoute",
        "Certificate",
    }


def _kustomization(overlay: str) -> str:
    return (K8S / "overlays" / overlay / "kustomization.yaml").read_text()
