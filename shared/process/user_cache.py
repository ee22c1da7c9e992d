"""This user's home and cache directories, also for a user id without HOME and without an entry in the password file."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path


def user_cache() -> Path:
    """This project's cache: `softprompt` in $XDG_CACHE_HOME or ~/.cache on Linux, in ~/Library/Caches on macOS."""
    try:
        import platformdirs
    except ImportError:  # GPU benchmarks run on machines that have little more than torch and transformers
        return Path(tempfile.gettempdir()) / f"softprompt-cache-{getattr(os, 'getuid', lambda: 0)()}"
    return platformdirs.user_cache_path("softprompt", appauthor=False)


def ensure_home() -> None:
    """Set HOME to a private temporary directory if this user has no home, as under an arbitrary id in a container.

    Libraries look up the home directory, and some fail without one.
    """
    try:
        Path.home()
        return
    except RuntimeError:
        folder = Path(tempfile.gettempdir()) / f"softprompt-home-{getattr(os, 'getuid', lambda: 0)()}"
    try:
        private_folder(folder)
    except (OSError, RuntimeError):  # another user has created it
        folder = Path(tempfile.mkdtemp(prefix="softprompt-home-"))
    os.environ["HOME"] = str(folder)


def expanded(path: str | Path) -> Path:
    """The path with `~` expanded; unchanged if the home directory is unknown."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def private_folder(folder: Path) -> Path:
    """Create the directory if it is missing; returns it. Raises OSError, or RuntimeError if others can write to it."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not is_ours(folder):
        raise RuntimeError(f"other users can write to {folder}")
    return folder


def is_ours(path: Path) -> bool:
    """Whether only this user and root can write to the path: a cache may be in a directory that everyone can write to.

    Raises OSError.
    """
    status = path.stat()
    if hasattr(os, "getuid"):
        return status.st_uid in (0, os.getuid()) and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return True  # Windows has neither owners nor these bits here, and the cache is in the user's own profile
