"""The Dockerfile without building it: hadolint, and what must hold of its stages. `make try-images` builds and runs the
images.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
import torch

from tests.k8s.checks.settings import SERVICES
from tests.k8s.manifests import OVERLAYS, ports, render

ROOT = Path(__file__).parents[2]
DOCKERFILE = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
HADOLINT = Path(sys.executable).parent / "hadolint"


@pytest.fixture(scope="module")
def requirements() -> ModuleType:
    spec = importlib.util.spec_from_file_location("requirements", ROOT / "k8s" / "images" / "requirements.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def stage(name: str) -> str:
    """Instructions of one stage."""
    found = re.search(rf"^FROM \S+ AS {name}$(.*?)(?=^FROM |\Z)", DOCKERFILE, re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1]


def ancestors(name: str) -> list[str]:
    """The stages that a stage is made from, itself first."""
    parents = {child: parent for parent, child in re.findall(r"^FROM (\S+) AS (\S+)$", DOCKERFILE, re.MULTILINE)}
    chain = [name]
    while (parent := parents[chain[-1]]) in parents:
        chain.append(parent)
    return chain


def test_hadolint_has_nothing_to_say() -> None:
    done = subprocess.run([HADOLINT, "--failure-threshold=style", ROOT / "Dockerfile"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_hadolint_would_have(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text(DOCKERFILE.replace("python3=3.11.*", "python3"))
    assert subprocess.run([HADOLINT, tmp_path / "Dockerfile"], capture_output=True).returncode == 1


@pytest.mark.parametrize("target", SERVICES)
def test_the_final_image_has_no_tools_and_no_root(target: str) -> None:
    chain = ancestors(target)
    assert chain == [target, "runtime", "base"]
    text = "".join(stage(name) for name in chain)
    for tool in ("pip", "venv", "build-essential", "gcc", "git", "curl"):
        assert not re.search(rf"\b{tool}\b", text.replace(f"--from={target}-build", "")), tool
    assert "USER 10001:10001" in stage("runtime")
    assert re.findall(r"^COPY .*", text, re.MULTILINE) == [
        f"COPY --from={target}-build /opt/softprompt /opt/softprompt"
    ]


@pytest.mark.parametrize("target", SERVICES)
def test_image_and_manifests_agree(target: str) -> None:
    settings, prefix = SERVICES[target]
    defaults = dict(re.findall(rf"({prefix}\w+)=(\S+)", stage(target)))
    assert {name.removeprefix(prefix).lower() for name in defaults} <= settings.model_fields.keys()
    for overlay in OVERLAYS:
        pod = render(overlay).pod(target)
        assert pod.spec["securityContext"]["runAsUser"] == 10001
        assert ports(pod.main)["grpc"] == int(defaults[f"{prefix}PORT"])
        assert ports(pod.main)["metrics"] == int(defaults[f"{prefix}METRICS_PORT"])
        version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
        assert pod.main["image"].partition(":")[2].removesuffix("-cuda") == version


@pytest.mark.parametrize("label", ["title", "description", "version", "revision", "created", "licenses", "base.name"])
def test_it_is_labelled(label: str) -> None:
    for target in SERVICES:
        assert f"org.opencontainers.image.{label}=" in stage("runtime") + stage(target)


def test_every_dependency_is_in_an_image_and_pinned(requirements: ModuleType) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    common, trainer = (requirements.requirements(part, ROOT / "pyproject.toml") for part in ("common", "trainer"))
    extras = project["optional-dependencies"]
    assert set(project["dependencies"] + extras["service"]) < set(common)
    assert set(extras["trainer"]) - {"softprompt[service]"} < set(trainer)
    assert not set(common) & set(trainer)
    pinned = {
        line.partition("==")[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
    }
    assert {re.split(r"[^A-Za-z0-9-]", line, maxsplit=1)[0].lower() for line in common + trainer} <= pinned
    assert {
        "hatchling",
        "packaging",
        "pathspec",
        "pluggy",
        "tomlkit",
        "trove-classifiers",
    } <= pinned  # what builds our own wheel
    commands = re.findall(r"\bpip (?:--python \S+ )?((?:install|wheel|download) .*)", DOCKERFILE)
    assert all("--constraint constraints.txt" in line or "--no-deps --no-index" in line for line in commands)
    assert all(
        "--no-build-isolation" in line for line in commands if line.startswith("wheel")
    )  # else pip gets a builder by itself
    assert len(commands) == 7


@pytest.mark.parametrize("variant", ["cpu", "cuda"])
def test_the_wrong_build_of_torch_ends_the_build_and_says_how_to_get_the_right_one(variant: str) -> None:
    code = re.search(r'-W ignore -c "(import torch;.*?)"$', DOCKERFILE.replace("\\\n", ""), re.MULTILINE)
    assert code is not None
    command = [sys.executable, "-W", "ignore", "-c", code[1].replace("$VARIANT", variant)]
    done = subprocess.run(command, capture_output=True, text=True)
    if (torch.version.cuda is not None) == (variant == "cuda"):
        assert (done.returncode, done.stderr) == (0, "")
    else:
        assert done.returncode == 1
        assert "TORCH_CPU_INDEX" in done.stderr
        assert torch.__version__ in done.stderr


def test_the_inference_image_needs_nothing_of_the_trainers() -> None:
    """Imported without the packages that only the trainer's image has."""
    missing = "ray", "sqlalchemy", "alembic", "sacrebleu", "psycopg"
    code = f"import sys; sys.modules.update(dict.fromkeys({missing!r}))\n"
    code += "import inference_service.server, softprompt.cli, softprompt.models"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_no_model_gets_into_the_build() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    allowed = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    assert "*" in ignored
    assert allowed == {
        *("pyproject.toml", "constraints.txt", "hatch_build.py", "README.md", "LICENSE", "k8s/images/requirements.py"),
        *("protos/prompttuning", "shared", "trainer_service", "inference_service", "softprompt"),
    }


@pytest.mark.parametrize("script", ["try_images.py", "try_ray.py"])
def test_the_scripts_that_try_the_images_start(script: str) -> None:
    command = [sys.executable, "-W", "error", str(ROOT / "k8s" / "images" / script), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")
    assert "--model" in done.stdout


def test_the_script_that_builds_them_says_how_it_is_called() -> None:
    done = subprocess.run([ROOT / "k8s" / "images" / "build.sh", "--help"], capture_output=True, text=True)
    assert done.returncode == 64
    assert done.stderr.startswith("Build the images with buildah")
    assert "--target" in done.stderr
