"""What must hold in a rendered overlay beyond its schemas. Each check takes the manifests and yields what is wrong, in
words.

`ALL` is what `test_overlays` runs over every overlay and `test_faults` proves able to fail.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from shared.config import ConfigError
from tests.k8s.checks import (
    http,
    lifecycle,
    models,
    monitoring,
    network,
    probes,
    ray,
    references,
    router,
    routes,
    schemas,
    security,
    settings,
    tls,
    volumes,
)
from tests.k8s.manifests import Manifests

Check = Callable[[Manifests], Iterator[str]]

ALL: dict[str, Check] = {
    "schemas": schemas.check,
    "references": references.check,
    "volumes": volumes.check,
    "models": models.check,
    "settings": settings.check,
    "probes": probes.check,
    "security": security.check,
    "lifecycle": lifecycle.check,
    "ray": ray.check,
    "network": network.check,
    "routes": routes.check,
    "http": http.check,
    "router": router.check,
    "tls": tls.check,
    "monitoring": monitoring.check,
}


def problems(manifests: Manifests) -> dict[str, list[str]]:
    """By check; empty when all is well. A check that stumbles over what it reads has found something wrong, too."""
    found: dict[str, list[str]] = {}
    for name, check in ALL.items():
        try:
            complaints = list(check(manifests))
        except (KeyError, TypeError, AttributeError, IndexError, ValueError, ConfigError) as error:
            complaints = [f"can't be read: {error!r}"]
        if complaints:
            found[name] = complaints
    return found
