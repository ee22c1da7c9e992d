"""The packages that an image installs in addition to torch: the project's dependencies and the extras for a cluster. Prints one
requirement per line for pip.

`requirements.py common` gives the packages of both images, `requirements.py trainer` those of the trainer's image only. Exact versions
come from constraints.txt.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

TRAINER_ONLY = frozenset({"alembic", "ray", "sacrebleu", "sqlalchemy"})
EXTRAS = {"common": ("object-store", "tracing"), "trainer": ("postgres",)}


def requirements(part: str, pyproject: Path) -> list[str]:
    """Requirement lines of `part`, which is `common` or `trainer`."""
    project = tomllib.loads(pyproject.read_text())["project"]
    of_trainer = part == "trainer"
    own = [line for line in project["dependencies"] if (_name(line) in TRAINER_ONLY) is of_trainer]
    return own + [line for extra in EXTRAS[part] for line in project["optional-dependencies"][extra]]


def _name(requirement: str) -> str:
    return re.split(r"[^A-Za-z0-9_.-]", requirement, maxsplit=1)[0].lower()


if __name__ == "__main__":
    sys.stdout.writelines(f"{line}\n" for line in requirements(sys.argv[1], Path("pyproject.toml")))
