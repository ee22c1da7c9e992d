"""Where this user's files lie: home and cache, also for a user id that has neither a HOME nor an entry in the password
database.
"""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path


def user_cache() -> Path:
    """`softprompt` in the user's cache directory: on Linux in $XDG_CACHE_HOME or ~/.cache, on macOS in
    ~/Library/Caches.
    """
    try:
        import platformdirs
    except ImportError:  # GPU benchmarks run on machines that have little more than torch and transformers
        return Path(tempfile.gettempdir()) / f"softprompt-cache-{getattr(os, 'getuid', lambda: 0)()}"
    return platformdirs.user_cache_path("softprompt", appauthor=False)


def ensure_home() -> None:
    """Where nothing says which directory is this user's home, as under an arbitrary id in a container, make HOME a
    private directory among the temporary files: libraries ask for it, and some give up without one.
    """
    try:
        Path.home()
        return
    except RuntimeError:
        folder = Path(tempfile.gettempdir()) / f"softprompt-home-{getattr(os, 'getuid', lambda: 0)()}"
    try:
        private_folder(folder)
    except (OSError, RuntimeError):  # another user was there first
        folder = Path(tempfile.mkdtemp(prefix="softprompt-home-"))
    os.environ["HOME"] = str(folder)


def expanded(path: str | Path) -> Path:
    """With `~` as a home directory; as it stands where that is unknown."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def private_folder(folder: Path) -> Path:
    """Made if it isn't there. Raises OSError, or RuntimeError if another user can write to it."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not is_ours(folder):
        raise RuntimeError(f"others may write to {folder}")
    return folder


def is_ours(path: Path) -> bool:
    """Only this user, or root, could have put its content there: a cache may lie where everybody can write. Raises
    OSError.
    """
    status = path.stat()
    return status.st_uid in (0, os.getuid()) and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
