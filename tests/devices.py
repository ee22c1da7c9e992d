"""Device files of a test's own: a product that replaced the machine's, as root, would break every later program."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

_FULL = os.makedev(1, 7)


def full_device(directory: Path) -> Path:
    """Acts as /dev/full does. Skips the test if this user may not make devices there."""
    path = directory / "full"
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, _FULL)
        path.open("wb").close()
    except PermissionError:
        pytest.skip("this user can't make devices here")
    return path
