"""Where this user's caches lie."""

from __future__ import annotations

import os
from pathlib import Path


def user_cache() -> Path:
    """`softprompt` in the user's cache directory (XDG: unless `$XDG_CACHE_HOME` is absolute, ~/.cache)."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (cache if cache.is_absolute() else Path.home() / ".cache") / "softprompt"
