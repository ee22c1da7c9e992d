"""Which optional packages are installed, by the metadata of our own distribution, which is never out of date."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, distribution, requires

from softprompt.types.type_names import listed

_NAME = re.compile(r"[\w.-]+")
_SHOWN = 3


def missing_packages(*extras: str) -> list[str]:
    """Packages that these extras install and that are not here; none where softprompt itself is not installed."""
    try:
        requirements = requires("softprompt") or []
    except PackageNotFoundError:
        return []
    needed = re.compile(rf"extra == [\"']({'|'.join(extras)})[\"']$")
    names = dict.fromkeys(_NAME.findall(line)[0] for line in requirements if needed.search(line))
    return [name for name in names if not _is_installed(name)]


def advice(missing: list[str], extra: str) -> str:
    """One sentence: what is missing, and the command that installs it."""
    packages = listed(missing, _SHOWN)
    return f"this command needs packages that are not installed ({packages}): pip install 'softprompt[{extra}]'"


def _is_installed(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True
