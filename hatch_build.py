"""Builds the wheel: moves our top-level packages under `softprompt`, so that a user's own folder `shared/` can't hide
ours.

In a checkout the packages lie side by side (`shared`, `trainer_service`, ...) and are imported by these names; mypy,
the import linter and editable installs need nothing special. Once installed, such names collide with other people's
folders, because Python searches the script's folder and the working directory first. So the wheel holds
`softprompt.shared`, `softprompt.trainer_service` and so on, and its import statements say so. The alternative, to nest
the folders in the checkout too, would lengthen every path and import of the repository for the sake of the installed
copy.

`ast` finds the import statements, so nothing else in a file changes and line numbers stay the same. Code must not name
our packages in strings (`__package__` and `shared.package_names` hold in both places); the build refuses those that do.
"""

from __future__ import annotations

import ast
import re
import runpy
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

HOME = "softprompt"
MOVED = {
    "shared": "shared",
    "trainer_service": "trainer_service",
    "inference_service": "inference_service",
    "prompttuning": "protos/prompttuning",
}
"""Top-level packages that become packages of `softprompt`, and their folders in the repository."""
EXAMPLES = "examples"
"""Data of `softprompt demo` and `softprompt example`."""

_OWN_MODULE = re.compile(r"(shared|trainer_service|inference_service)\.\w[\w.]*(:\w+)?|(trainer|inference)_service")
_GENERATED_MODULE = re.compile(r"prompttuning\.\w+\.\w+_pb2")


class WheelLayout(BuildHookInterface[Any]):
    """Stages the package `softprompt` of the wheel in a temporary folder and has hatchling take it as it is."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called before the build. An editable install imports from the checkout and needs nothing."""
        if version != "editable":
            self._folder = tempfile.TemporaryDirectory(prefix="softprompt-wheel-")
            package = Path(self._folder.name) / HOME
            stage(Path(self.root), package)
            if not compile_kernels(package / "shared" / "kernels", build_data):
                self.app.display_warning("no compiled kernels in this wheel: they need gcc on Linux, x86_64 or aarch64")
            build_data["force_include"][str(package)] = HOME

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Called after the build."""
        if version != "editable":
            self._folder.cleanup()


def compile_kernels(package: Path, build_data: dict[str, Any]) -> bool:
    """Whether the kernels could be compiled into `package`, the staged `shared/kernels`. Sets the wheel's platform if
    so.
    """
    compiled: bool = runpy.run_path(str(package / "build.py"))["add_to_wheel"](build_data)
    return compiled


def stage(root: Path, package: Path) -> None:
    """Write the package `softprompt` as the wheel has it. ValueError names the file and line that can't be moved."""
    ignored = shutil.ignore_patterns("__pycache__", "*.pyc")
    shutil.copytree(root / HOME, package, ignore=ignored)
    for name, folder in MOVED.items():  # FileExistsError if `softprompt` has a module of that name
        shutil.copytree(root / folder, package / name, ignore=ignored)
    for file in sorted([*package.rglob("*.py"), *package.rglob("*.pyi")]):
        file.write_bytes(moved(file.read_bytes(), file.relative_to(package).as_posix()))
    if (root / EXAMPLES).is_dir():  # the images are built without it
        shutil.copytree(root / EXAMPLES, package / EXAMPLES)


def moved(source: bytes, file: str) -> bytes:
    """The source with `softprompt.` before the names of our packages in its imports. `file` is named in errors."""
    lines = source.splitlines(keepends=True)
    prefix, packages = f"{HOME}.".encode(), tuple(package.encode() for package in MOVED)
    for line, column in sorted(_places(ast.parse(source), file), reverse=True):
        before, after = lines[line - 1][:column], lines[line - 1][column:]
        if not after.startswith(packages):
            raise ValueError(f"{file}:{line}: write one space after `from`")
        lines[line - 1] = before + prefix + after
    return b"".join(lines)


def _places(tree: ast.Module, file: str) -> Iterator[tuple[int, int]]:
    """Line (from 1) and column (in bytes) of each module name that gets the prefix."""
    is_generated = file.endswith(("_pb2.py", "_pb2_grpc.py"))
    for node in ast.walk(tree):
        match node:
            case ast.ImportFrom(module=str(module), level=0) if _is_moved(module):
                yield node.lineno, node.col_offset + len("from ")
            case ast.Import(names=names):
                for alias in names:
                    if _is_moved(alias.name) and alias.asname is None:  # binds the top-level name for the code below
                        raise ValueError(f"{file}:{node.lineno}: import {alias.name}: write `from ...` or `... as`")
                    if _is_moved(alias.name):
                        yield alias.lineno, alias.col_offset
            case ast.Constant(value=str(text)) if is_generated and _GENERATED_MODULE.fullmatch(text):
                yield (
                    node.lineno,
                    node.col_offset + 1,
                )  # becomes `__module__` of the messages, by which pickle finds them
            case ast.Constant(value=str(text)) if not is_generated and _OWN_MODULE.fullmatch(text):
                raise ValueError(f"{file}:{node.lineno}: {text!r} names a module: use shared.package_names")


def _is_moved(module: str) -> bool:
    return module.partition(".")[0] in MOVED
