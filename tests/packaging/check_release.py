"""`python -m tests.packaging.check_release FOLDER`: checks the wheel and the sdist in FOLDER before they are published.

Twine would add nothing: it renders the README, which for Markdown can't fail, and validates the metadata with
`packaging`, as we do.
"""

from __future__ import annotations

import functools
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from pathlib import Path

from packaging.metadata import Metadata

from tests.packaging.environments import ROOT, build

NEEDED = (
    *("py.typed", "cli/main.py", "client/sync_client.py", "shared/errors.py", "prompttuning/v1/tuning_pb2.py"),
    *("trainer_service/__main__.py", "inference_service/__main__.py"),
    *("examples/product-descriptions/train.jsonl", "examples/review-sentiment/example.toml"),
)
JUNK = (".pyc", ".env", ".sqlite3", ".log", ".DS_Store")


def check(folder: Path) -> list[str]:
    """What is wrong; empty if both can be published."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    base = f"{project['name']}-{project['version']}"
    wheels, sdists = list(folder.glob("*.whl")), list(folder.glob("*.tar.gz"))
    if len(wheels) != 1 or len(sdists) != 1 or len(list(folder.iterdir())) != 2:
        return [
            f"{folder} must hold one wheel and one sdist, and holds {sorted(file.name for file in folder.iterdir())}"
        ]
    contents = wheel_contents(wheels[0])
    return [
        *(
            f"{file.name} is not of version {project['version']}"
            for file in (*wheels, *sdists)
            if not file.name.startswith(f"{base}")
        ),
        *_metadata_problems(contents[f"{base}.dist-info/METADATA"], project),
        *(f"the wheel lacks {name}" for name in NEEDED if f"softprompt/{name}" not in contents),
        *(f"the wheel holds {name}" for name in contents if not name.startswith(("softprompt/", f"{base}.dist-info/"))),
        *(f"the wheel holds {name}" for name in contents if name.endswith(JUNK) or "__pycache__" in name),
        *_differences(contents, _rebuilt(sdists[0].resolve(), base)),
    ]


def wheel_contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _metadata_problems(raw: bytes, project: dict[str, object]) -> list[str]:
    try:
        metadata = Metadata.from_email(raw, validate=True)
    except ExceptionGroup as error:
        return [f"metadata: {problem}" for problem in error.exceptions]
    readme = (ROOT / "README.md").read_text()
    return (
        []
        if metadata.description and metadata.description.strip() == readme.strip()
        else ["metadata: the description is not README.md"]
    )


@functools.cache
def _rebuilt(sdist: Path, base: str) -> dict[str, bytes]:
    """Contents of the wheel that the sdist builds: it must be complete."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with tarfile.open(sdist) as archive:
            archive.extractall(folder, filter="data")
        return wheel_contents(build("wheel", folder / "dist", folder / base))


def _differences(wheel: dict[str, bytes], rebuilt: dict[str, bytes]) -> list[str]:
    """Of files by their content, but for libraries: a compiler needn't make the same bytes twice; and RECORD lists
    their hashes.
    """
    compiled = (".so", ".dist-info/RECORD")
    names = sorted(
        wheel.keys() ^ rebuilt.keys() | {name for name in wheel.keys() & rebuilt.keys() if not name.endswith(compiled)}
    )
    return [f"the wheel from the sdist has another {name}" for name in names if wheel.get(name) != rebuilt.get(name)]


if __name__ == "__main__":
    problems = check(Path(sys.argv[1]))
    sys.exit("\n".join(problems) or None)
