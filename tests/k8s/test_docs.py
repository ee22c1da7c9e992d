"""docs/kubernetes.md and k8s/README.md say what is there: overlays, components, Secrets with their keys, files, settings."""

from __future__ import annotations

import re
from pathlib import Path

from tests.k8s.checks.references import MADE_BY_PEOPLE
from tests.k8s.checks.settings import SERVICES
from tests.k8s.manifests import K8S, OVERLAYS

ROOT = K8S.parent
WALK = (ROOT / "docs" / "kubernetes.md").read_text()
README = (K8S / "README.md").read_text()


def test_overlays_and_components_are_told() -> None:
    rows = re.findall(r"^\| `([\w-]+)` \| ", WALK.partition("| overlay |")[2], re.MULTILINE)
    assert sorted(rows[: len(OVERLAYS)]) == OVERLAYS
    told = set(re.findall(r"^\| `([\w-]+)` \| ", README, re.MULTILINE))
    assert told == {path.parent.name for path in (K8S / "components").glob("*/kustomization.yaml")}


def test_people_are_told_which_secrets_to_make() -> None:
    for name, keys in MADE_BY_PEOPLE.items():
        command = WALK.partition(f"create secret generic {name}")[2].partition("kubectl")[0]
        assert {key for key in keys if key in command} == keys, name


def test_files_that_are_named_are_there() -> None:
    named = set(re.findall(r"\b((?:k8s|docs|examples|tests)/[\w./-]+\w)", WALK + README)) - {"k8s/overlays/mine/kustomization.yaml"}
    assert {path for path in named if not (ROOT / path).exists()} <= {"docs/security.md"}
    assert named >= {"k8s/overlays/local-cpu", "k8s/images/build.sh"}


def test_settings_that_are_named_are_settings() -> None:
    named = set(re.findall(r"SOFTPROMPT_(?:TRAINER|INFERENCE)_[A-Z_]+", WALK + README))
    known = {f"{prefix}{field}".upper() for cls, prefix in SERVICES.values() for field in cls.model_fields}
    assert named - known == set()
    assert Path(ROOT / "Makefile").read_text().count("\ntry-images:") == 1
