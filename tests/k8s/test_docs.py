"""docs/kubernetes.md and k8s/README.md say what is there: overlays, components, Secrets with their keys, files,
settings.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from shared.security.callers_file import CallersFile
from shared.security.tokens import hash_token
from tests.k8s.checks import problems
from tests.k8s.checks.references import MADE_BY_PEOPLE
from tests.k8s.checks.settings import SERVICES
from tests.k8s.manifests import K8S, OVERLAYS, build

ROOT = K8S.parent
WALK = (ROOT / "docs" / "kubernetes.md").read_text()
README = (K8S / "README.md").read_text()
OWN_OVERLAYS = dict(re.findall(r"```yaml\n# k8s/overlays/(\w+)/kustomization.yaml\n(.*?)```", WALK, re.DOTALL))


def test_overlays_and_components_are_described() -> None:
    rows = re.findall(r"^\| `([\w-]+)` \| ", WALK.partition("| overlay |")[2], re.MULTILINE)
    assert sorted(rows[: len(OVERLAYS)]) == OVERLAYS
    described = set(re.findall(r"^\| `([\w-]+)` \| ", README, re.MULTILINE))
    assert described == {path.parent.name for path in (K8S / "components").glob("*/kustomization.yaml")}


def test_the_page_names_the_secrets_to_make() -> None:
    for name, keys in MADE_BY_PEOPLE.items():
        command = WALK.partition(f"create secret generic {name}")[2].partition("kubectl")[0]
        assert {key for key in keys if key in command} == keys, name


def test_every_alert_has_a_row_in_the_runbook() -> None:
    rules = (K8S / "components" / "monitoring" / "rules.yaml").read_text()
    alerts = set(re.findall(r"- alert: (\w+)", rules))
    assert alerts == set(re.findall(r"`(Softprompt\w+)`", (ROOT / "docs" / "operations.md").read_text()))


def test_files_that_are_named_are_there() -> None:
    named = set(re.findall(r"\b((?:k8s|docs|examples|tests)/[\w./-]+\w)", WALK + README)) - {
        f"k8s/overlays/{name}/kustomization.yaml" for name in OWN_OVERLAYS
    }
    assert {path for path in named if not (ROOT / path).exists()} <= {"docs/security.md"}
    assert named >= {"k8s/overlays/local-cpu", "k8s/images/build.sh"}


def test_settings_that_are_named_are_settings() -> None:
    named = set(re.findall(r"SOFTPROMPT_(?:TRAINER|INFERENCE)_[A-Z_]+", WALK + README))
    known = {f"{prefix}{field}".upper() for cls, prefix in SERVICES.values() for field in cls.model_fields}
    assert named - known == set()
    assert Path(ROOT / "Makefile").read_text().count("\ntry-images:") == 1


@pytest.mark.parametrize("script", re.findall(r"```sh\n(.*?)```", WALK, re.DOTALL))
def test_commands_are_what_a_shell_takes(script: str) -> None:
    done = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert not re.search(r'"[^"\n]*: \$\d', script), "a price in double quotes is a parameter"


def test_there_are_overlays_of_ones_own() -> None:
    assert OWN_OVERLAYS.keys() == {"mine", "models", "ours"}


@pytest.mark.parametrize("name", OWN_OVERLAYS)
def test_an_overlay_of_ones_own_builds_and_nothing_is_wrong_with_it(name: str, tmp_path: Path) -> None:
    shutil.copytree(K8S, tmp_path / "k8s")
    folder = tmp_path / "k8s" / "overlays" / name
    folder.mkdir()
    (folder / "kustomization.yaml").write_text(OWN_OVERLAYS[name])
    assert problems(build(folder)) == {}


def test_the_pages_callers_file_is_valid_and_knows_the_token(tmp_path: Path) -> None:
    script = next(block for block in re.findall(r"```sh\n(.*?)```", WALK, re.DOTALL) if "tokens new" in block)
    (tmp_path / "kubectl").write_text('#!/bin/sh\necho "$@" > asked\n')
    (tmp_path / "kubectl").chmod(0o755)
    path = f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    subprocess.run(["bash", "-euc", script], cwd=tmp_path, env={**os.environ, "PATH": path}, check=True)
    assert (tmp_path / "asked").read_text().split()[-2:] == ["softprompt-callers", "--from-file=callers.json"]
    token = (tmp_path / "token").read_text().strip()
    assert token not in (tmp_path / "callers.json").read_text()
    directory = CallersFile(tmp_path / "callers.json").directory
    shop, operators = directory.by_token(hash_token(token)), directory.by_certificate(["client.softprompt", "client"])
    assert shop is not None
    assert operators is not None
    assert (shop.name, operators.name) == ("shop", "operators")
