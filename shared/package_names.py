"""Names under which our packages are imported: as they are in a checkout, inside `softprompt` in the wheel (see
hatch_build.py).
"""

from __future__ import annotations


def package_name(package: str) -> str:
    """For what takes a module's name as a string: `trainer_service`, or `softprompt.trainer_service` where the wheel is
    installed.
    """
    return (__package__ or "").removesuffix("shared") + package
