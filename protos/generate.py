"""Generate the Python code next to the protos: `python protos/generate.py`; `--check` fails if it is out of date.

Generated files are committed, so that users need no compiler. Never edit them.
"""

from __future__ import annotations

import argparse
import filecmp
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).parent
WELL_KNOWN_TYPES = files("grpc_tools") / "_proto"
SOURCES = sorted(path.relative_to(ROOT) for path in ROOT.glob("prompttuning/**/*.proto"))


def generate(target: Path) -> list[Path]:
    """Write `*_pb2.py`, `*_pb2_grpc.py` and their stubs under `target`; returns their paths relative to it."""
    plugins = [f"--{plugin}_out={target}" for plugin in ("python", "grpc_python")]
    for plugin in ("mypy", "mypy_grpc"):  # installed next to this interpreter; its environment may not be activated
        plugins += [
            f"--plugin=protoc-gen-{plugin}={Path(sys.executable).parent / f'protoc-gen-{plugin}'}",
            f"--{plugin}_out=quiet:{target}",
        ]
    if protoc.main(["protoc", f"-I{ROOT}", f"-I{WELL_KNOWN_TYPES}", *plugins, *map(str, SOURCES)]) != 0:
        raise SystemExit("protoc failed")
    return sorted(
        path.relative_to(target)
        for path in target.glob("prompttuning/**/*_pb2*.py*")
        if "__pycache__" not in path.parts
    )


def main() -> None:
    """Generate the code, or with `--check` compare it with what is committed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare with the committed files instead of writing them")
    if not parser.parse_args().check:
        generate(ROOT)
        return
    with tempfile.TemporaryDirectory() as scratch:
        fresh = generate(Path(scratch))
        committed = {
            path.relative_to(ROOT)
            for path in ROOT.glob("prompttuning/**/*_pb2*.py*")
            if "__pycache__" not in path.parts
        }
        stale = [
            path
            for path in fresh
            if path not in committed or not filecmp.cmp(ROOT / path, Path(scratch) / path, shallow=False)
        ]
        stale += sorted(committed - set(fresh))
    if stale:
        sys.exit("stale generated code, run `make protos`: " + ", ".join(map(str, stale)))


if __name__ == "__main__":
    main()
