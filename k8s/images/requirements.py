"""Prints the packages that an image installs in addition to torch, one requirement per line for pip.

They are the project's dependencies and the extras for a cluster. `requirements.py common` gives the packages of both
images, `requirements.py trainer` those of the trainer's image only. Exact versions come from constraints.txt.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path

EXTRAS = {"common": ("inference", "gateway", "object-store", "limits", "tracing"), "trainer": ("trainer", "postgres")}
_OWN_EXTRAS = re.compile(r"softprompt\[([\w,-]+)\]")


def requirements(part: str, pyproject: Path) -> list[str]:
    """Requirement lines of `part`, which is `common` or `trainer`."""
    project = tomllib.loads(pyproject.read_text())["project"]
    common = [*project["dependencies"], *_lines(project["optional-dependencies"], EXTRAS["common"])]
    if part == "common":
        return common
    return [line for line in _lines(project["optional-dependencies"], EXTRAS[part]) if line not in common]


def _lines(known: dict[str, list[str]], extras: Iterable[str]) -> Iterator[str]:
    for extra in extras:
        for line in known[extra]:
            if own := _OWN_EXTRAS.fullmatch(line):
                yield from _lines(known, own[1].split(","))
            else:
                yield line


if __name__ == "__main__":
    sys.stdout.writelines(f"{line}\n" for line in requirements(sys.argv[1], Path("pyproject.toml")))
