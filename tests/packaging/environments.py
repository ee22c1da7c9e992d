"""Fresh environments with the built wheel: light ones with only the client's dependencies, and full ones."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterator
from importlib.metadata import Distribution, distribution
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
SITE_PACKAGES = Path(sysconfig.get_paths()["purelib"])
COLLIDING = ("shared", "trainer_service", "inference_service", "prompttuning", "protos", "tests")

_COMPILER = """#!{python} -IS
import hashlib, os, pathlib, shutil, subprocess, sys
compiler, kept, arguments = {compiler!r}, {kept!r}, sys.argv[1:]
sources = [pathlib.Path(argument) for argument in arguments if argument.endswith(".c")]
if not sources:
    os.execv(compiler, [compiler, *arguments])
target = arguments[arguments.index("-o") + 1]
inputs = [argument for argument in arguments if argument != target and not argument.endswith(".c")]
inputs += [source.name for source in sources]
for file in sorted(sources[0].parent.iterdir()):
    if file.suffix in (".c", ".h"):
        inputs += [file.name, file.read_bytes()]
library = os.path.join(kept, hashlib.sha256(repr(inputs).encode()).hexdigest())
if not os.path.exists(library):
    if code := subprocess.run([compiler, *arguments, "-O0"]).returncode:
        sys.exit(code)
    shutil.copyfile(target, library)
shutil.copyfile(library, target)
"""
"""A compiler that doesn't optimise, and that compiles the same files with the same options once."""


@functools.cache
def _kept_libraries() -> str:
    """The folder of what was compiled in this process."""
    folder = mkdtemp(prefix="libraries-")
    atexit.register(shutil.rmtree, folder)
    return folder


def build(target: str, folder: Path, source: Path = ROOT) -> Path:
    """The `wheel` or the `sdist` of a source tree, built into an empty or new folder without network.

    The compiler doesn't optimise, which would take most of the time; other tests compare optimised kernels. A second
    build doesn't compile the same files again.
    """
    command = [sys.executable, "-m", "hatchling", "build", "--target", target, "--directory", str(folder)]
    with TemporaryDirectory() as name:
        if (gcc := shutil.which("gcc")) is not None:
            quick = Path(name) / "gcc"
            quick.write_text(_COMPILER.format(python=sys.executable, compiler=gcc, kept=_kept_libraries()))
            quick.chmod(0o755)
        environment = os.environ | {"PATH": f"{name}{os.pathsep}{os.environ['PATH']}"}
        subprocess.run(command, cwd=source, env=environment, check=True, capture_output=True)
    (built,) = folder.iterdir()
    return built


class Environment:
    """A virtual environment with our wheel. Other packages are the test environment's own, by links."""

    def __init__(self, folder: Path, wheel: Path) -> None:
        self.folder = folder
        venv.create(folder, with_pip=False)
        self.site_packages = next(folder.glob("lib/python*/site-packages"))
        pip = [
            sys.executable,
            "-m",
            "pip",
            "--python",
            str(folder / "bin/python"),
            "--disable-pip-version-check",
            "install",
        ]
        subprocess.run([*pip, "--quiet", "--no-deps", "--no-index", str(wheel)], check=True)

    @classmethod
    def light(cls, folder: Path, wheel: Path) -> Environment:
        """What `pip install softprompt` makes."""
        made = cls(folder, wheel)
        (own,) = Distribution.discover(name="softprompt", path=[str(made.site_packages)])
        for found in _closure(own):
            for file in found.files or ():
                source, link = SITE_PACKAGES / file, made.site_packages / file
                if ".." not in file.parts and source.is_file():
                    link.parent.mkdir(parents=True, exist_ok=True)
                    link.symlink_to(source)
        return made

    @classmethod
    def full(cls, folder: Path, wheel: Path) -> Environment:
        """With everything of the test environment but its editable softprompt: a path's own .pth files are not read."""
        made = cls(folder, wheel)
        (made.site_packages / "everything_else.pth").write_text(f"{SITE_PACKAGES}\n")
        return made

    def command(self, name: str) -> str:
        return str(self.folder / "bin" / name)

    def variables(self) -> dict[str, str]:
        return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}

    def run(self, *arguments: str | Path, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
        """A command of the environment in `cwd`, its output as text."""
        command = [self.command(str(arguments[0])), *map(str, arguments[1:])]
        environment = {**self.variables(), **variables}
        return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def colliding_folder(folder: Path) -> Path:
    """A folder with packages of a user's own that are named like ours, and that must never be imported."""
    for name in COLLIDING:
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text("raise ImportError(f'{__name__} of the user was imported')\n")
    return folder


def _closure(top: Distribution) -> Iterator[Distribution]:
    """The distributions that `top` requires without extras, and those that they require."""
    seen, waiting = set[str](), [(top, "")]
    while waiting:
        found, extra = waiting.pop()
        for line in found.requires or ():
            requirement = Requirement(line)
            if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
                continue
            needed = distribution(requirement.name)
            for wanted in {"", *requirement.extras}:
                if f"{requirement.name}[{wanted}]" not in seen:
                    seen.add(f"{requirement.name}[{wanted}]")
                    waiting.append((needed, wanted))
                    if not wanted:
                        yield needed
