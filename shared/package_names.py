"""Import names of this project's packages: top-level in a checkout, inside `softprompt` in a wheel (hatch_build.py)."""

from __future__ import annotations


def package_name(package: str) -> str:
    """The import name of `package`, `trainer_service`; in an installed wheel `softprompt.trainer_service`."""
    return (__package__ or "").removesuffix("shared") + package
