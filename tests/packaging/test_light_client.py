"""`pip install softprompt` alone: little is installed, little is imported, and what needs more says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.packaging.environments import Environment

HEAVY = (
    *(
        "accelerate",
        "alembic",
        "cryptography",
        "gguf",
        "grpc_health",
        "grpc_reflection",
        "huggingface_hub",
        "jwt",
        "matplotlib",
    ),
    *(
        "numpy",
        "openpyxl",
        "pandas",
        "polars",
        "prometheus_client",
        "psutil",
        "psycopg",
        "pyarrow",
        "pydantic_settings",
        "ray",
    ),
    *("sacrebleu", "safetensors", "sqlalchemy", "tokenizers", "torch", "transformers"),
)
"""Modules of what only services, models and single file formats need."""
LOADED = "import json, sys; print(json.dumps([name for name in sys.modules if name.partition('.')[0] in {heavy}]))"


def test_no_heavy_package_is_installed(light: Environment, tmp_path: Path) -> None:
    code = f"import importlib.util; print([name for name in {HEAVY} if importlib.util.find_spec(name)])"
    assert light.run("python", "-c", code, cwd=tmp_path).stdout == "[]\n"


@pytest.mark.parametrize(
    "code",
    [
        "import softprompt\nfor name in softprompt.__all__: getattr(softprompt, name)",
        "import softprompt; softprompt.Client().close()",
        "import softprompt.cli.main",
    ],
)
def test_no_heavy_package_is_imported_where_they_are_installed(full: Environment, tmp_path: Path, code: str) -> None:
    # gRPC's own __init__ imports its companions where they are installed
    heavy = set(HEAVY) - {"grpc_health", "grpc_reflection"}
    done = full.run("python", "-c", f"{code}\n{LOADED.format(heavy=heavy)}", cwd=tmp_path)
    assert json.loads(done.stdout or "null") == [], done.stderr


@pytest.mark.parametrize("command", ["", "chat", "data", "datasets", "doctor", "generate", "jobs", "prompts", "tune"])
def test_help_needs_nothing_more(light: Environment, tmp_path: Path, command: str) -> None:
    done = light.run("softprompt", *command.split(), "--help", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Usage: softprompt" in done.stdout


def test_the_version_is_printed(light: Environment, tmp_path: Path) -> None:
    assert light.run("softprompt", "--version", cwd=tmp_path).stdout == "softprompt 0.1.0\n"


def test_examples_are_made_checked_and_converted(light: Environment, tmp_path: Path) -> None:
    for arguments in (["init", "a.csv"], ["data", "check", "a.csv"], ["data", "convert", "a.csv", "a.jsonl"]):
        done = light.run("softprompt", *arguments, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    wanted = light.run("softprompt", "data", "convert", "a.csv", "a.xlsx", cwd=tmp_path)
    assert (wanted.returncode, "pip install 'softprompt[data]'" in wanted.stderr) == (2, True)


def test_the_doctor_and_the_list_of_models_need_nothing_more(light: Environment, tmp_path: Path) -> None:
    away: dict[str, Any] = {"SOFTPROMPT_TRAINER": "127.0.0.1:9", "SOFTPROMPT_INFERENCE": "127.0.0.1:9"}
    code = "from softprompt.cli import doctor, main; doctor._SERVICE_SECONDS = 0.5; main()"
    done = light.run("python", "-c", code, "doctor", cwd=tmp_path, **away)
    assert (done.returncode, done.stderr) == (1, "")
    assert "the client alone" in done.stdout
    listed = light.run("softprompt", "models", "list", cwd=tmp_path, **away)
    assert listed.returncode == 0
    assert "smollm2-135m-instruct" in listed.stdout


@pytest.mark.parametrize(
    "command",
    [["up"], ["gateway"], ["demo"], ["models", "pull", "smollm2-135m-instruct"], ["models", "fingerprint", "."]],
    ids=lambda words: words[0],
)
def test_commands_that_need_more_say_in_one_line_how_to_install_it(
    light: Environment, tmp_path: Path, command: list[str]
) -> None:
    done = light.run("softprompt", *command, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: this command needs packages that are not installed (")
    assert done.stderr.endswith("): pip install 'softprompt[all]'\n")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("service", ["trainer", "inference"])
def test_services_do_so_too(light: Environment, tmp_path: Path, service: str) -> None:
    done = light.run(f"softprompt-{service}", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith(f"): pip install 'softprompt[{service}]'\n")


@pytest.mark.parametrize("command", ["--help", "tokens new", "tune --help"])
def test_it_needs_nothing_that_only_unix_has(light: Environment, tmp_path: Path, command: str) -> None:
    done = light.run("python", Path(__file__).with_name("elsewhere.py"), *command.split(), cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout
