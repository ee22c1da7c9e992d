"""The built wheel: what is in it, and that it works beside a user's own folders of our checkout's names."""

from __future__ import annotations

import ast
import json
import signal
import subprocess
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hatch_build import MOVED, moved
from tests.packaging.environments import Environment, colliding_folder

EXAMPLES = "".join(json.dumps({"input": f"number {n}", "output": f"{n + 1}"}) + "\n" for n in range(12))


@pytest.fixture
def user_folder(tmp_path: Path) -> Path:
    return colliding_folder(tmp_path / "user")


def test_all_of_it_is_one_package(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        sources = {name: archive.read(name) for name in names if name.endswith((".py", ".pyi"))}
    assert {name.partition("/")[0] for name in names} == {"softprompt", "softprompt-0.1.0.dist-info"}
    assert len(names) == len(set(names))
    assert "softprompt/py.typed" in names
    assert not [name for name in names if "__pycache__" in name]
    for name, source in sources.items():
        for node in ast.walk(ast.parse(source)):
            imported = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            imported += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [module for module in imported if module.partition(".")[0] in MOVED], name


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("from shared.errors import NotFound", "from softprompt.shared.errors import NotFound"),
        ("from shared import hub", "from softprompt.shared import hub"),
        ("import shared.model.hub as hub, os", "import softprompt.shared.model.hub as hub, os"),
        ("def f():\n  'ä'; from shared import hub", "def f():\n  'ä'; from softprompt.shared import hub"),
        ("'from shared import hub'", "'from shared import hub'"),
        ("from shared_memory import x", "from shared_memory import x"),
        ("import sharedlib", "import sharedlib"),
        ("x = 'shared'  # from shared import hub", "x = 'shared'  # from shared import hub"),
    ],
)
def test_only_imports_are_changed(source: str, expected: str) -> None:
    assert moved(source.encode(), "x.py").decode() == expected


@pytest.mark.parametrize(
    "source",
    ["import shared.model.hub", "import shared", "x = 'trainer_service.database:migrations'", "x = 'trainer_service'"],
)
def test_what_can_not_be_moved_fails_the_build_and_is_named(source: str) -> None:
    with pytest.raises(ValueError, match=r"^shared/x\.py:2: "):
        moved(f"\n{source}\n".encode(), "shared/x.py")


def test_messages_can_be_pickled(light: Environment, tmp_path: Path) -> None:
    code = "import pickle; from softprompt.prompttuning.v1 import common_pb2 as m\n"
    code += "print(len(pickle.loads(pickle.dumps([m.Template()]))))"
    done = light.run("python", "-c", code, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr


def test_a_users_own_folders_do_not_break_the_import(light: Environment, user_folder: Path) -> None:
    (user_folder / "script.py").write_text(
        "import softprompt\nfor name in softprompt.__all__:\n    getattr(softprompt, name)\n"
    )
    for arguments in (
        ["script.py"],
        ["-c", "import softprompt; softprompt.Client"],
        ["-m", "softprompt.cli", "--help"],
    ):
        done = light.run("python", *arguments, cwd=user_folder)
        assert (done.returncode, done.stderr) == (0, "")
    assert light.run("softprompt", "tokens", "new", cwd=user_folder, PYTHONPATH=str(user_folder)).returncode == 0


@pytest.mark.usefixtures("one_thread")
def test_both_services_run_from_the_wheel_and_a_light_client_uses_them(
    full: Environment, light: Environment, user_folder: Path, tiny_model_dir: Path
) -> None:
    """The journey beside folders that raise an error when imported: upload, tune on a Ray worker, publish, stream."""
    (user_folder / "train.jsonl").write_text(EXAMPLES)
    with _services(full, user_folder, tiny_model_dir) as endpoints:

        def run(*command: str | Path) -> str:
            variables = {"SOFTPROMPT_TRAINER": endpoints["trainer"], "SOFTPROMPT_INFERENCE": endpoints["inference"]}
            done = light.run(*command, cwd=user_folder, **variables)
            assert done.returncode == 0, done.stderr
            return done.stdout

        def softprompt(*arguments: str) -> str:
            return run("softprompt", *arguments)

        tuned = softprompt("tune", "train.jsonl", "--prompt", "tone", "--steps", "4", "--virtual-tokens", "4", "--json")
        assert "prompts/tone/versions/1" in tuned
        assert "SUCCEEDED" in softprompt("jobs", "list").upper()
        assert softprompt("datasets", "list")
        assert "tone" in softprompt("prompts", "list")
        assert softprompt("generate", "number 3", "--prompt", "tone", "--json")
        assert softprompt("info")
        assert run("python", Path(__file__).with_name("elsewhere.py"), "generate", "number 3", "--prompt", "tone")
        softprompt("prompts", "export", "tone", "adapter")
        imported = softprompt("prompts", "import", "adapter", "--prompt", "copy", "--template", "{input}", "--json")
        assert "prompts/copy/versions/1" in imported


@contextmanager
def _services(environment: Environment, folder: Path, model: Path) -> Iterator[dict[str, str]]:
    """`softprompt up`; where its processes listen."""
    command = [environment.command("softprompt"), "up", "--model", str(model), "--data", str(folder / "data"), "--json"]
    command += ["--trainer-port", "0", "--inference-port", "0", "--gateway-port", "0", "--grace", "1"]
    with (folder / "up.log").open("w+") as log:
        running = subprocess.Popen(
            command, cwd=folder, env=environment.variables(), stdout=subprocess.PIPE, stderr=log, text=True
        )
        try:
            assert running.stdout is not None
            line = running.stdout.readline()
            assert line, (folder / "up.log").read_text()[-3000:]
            yield json.loads(line)
        finally:
            running.send_signal(signal.SIGINT)
            running.communicate()
    assert running.returncode == 0
