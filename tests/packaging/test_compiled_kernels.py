"""The wheel contains the compiled library and uses it on a machine without a compiler."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from shared.kernels import build, library

SCRIPT = """
import torch
from {package} import build, library, ops
assert build.compiler_version() is None
assert library.load() is not None
print(library.find(library.instruction_set()))
torch.testing.assert_close(ops.rms_norm(torch.full((3, 16), 2.0), torch.ones(16), 0.0), torch.ones(3, 16))
"""


@pytest.mark.skipif(library.load() is None, reason="no compiled kernels on this machine")
def test_an_installed_wheel_computes_with_its_own_library(wheel: Path, tmp_path: Path) -> None:
    machine = platform.machine()
    assert wheel.name.endswith(f"-py3-none-linux_{machine}.whl")
    installed = tmp_path / "installed"
    zipfile.ZipFile(wheel).extractall(installed)
    names = [build.library_name(None, name) for name in build.INSTRUCTION_SETS[machine]]
    assert [len([*installed.rglob(name)]) for name in names] == [1] * len(names)
    [brought] = installed.rglob(build.library_name(None, str(library.instruction_set())))
    package = ".".join(brought.parent.relative_to(installed).parts)
    environment = {"PATH": "", "PYTHONPATH": str(installed), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(package=package)],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if name not in environment} | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()) == brought
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("without", ["compiler", "platform"])
def test_elsewhere_the_wheel_is_pure_python(without: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if without == "compiler":
        monkeypatch.setattr(build, "compiler_version", lambda: None)
    else:
        monkeypatch.setattr(build, "SYSTEM", "Darwin")
    monkeypatch.setattr(build, "compile_into", None)
    build_data = {"pure_python": True}
    assert not build.add_to_wheel(build_data)
    assert build_data == {"pure_python": True}
