"""From a URL to a store."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from shared.errors import InvalidInput
from shared.process.user_cache import expanded
from shared.store.base import ObjectBackend
from shared.store.local import LocalBackend
from shared.store.memory import MemoryBackend
from shared.store.store import PromptStore

_OBJECT_SCHEMES = {"s3", "gs", "az", "abfs", "abfss"}
REQUEST_SECONDS = 30.0
_RULE = (
    "must be a directory, file://DIRECTORY, memory://, s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or az://CONTAINER/PREFIX"
)


def open_store(url: str, timeout_seconds: float = REQUEST_SECONDS) -> PromptStore:
    """Open, or begin, the store at `url`. Raises InvalidInput for a URL that can't be one, Unavailable if the place is
    away.

    `timeout_seconds` is the time limit of one request to an object store. A directory has none: call its methods in a
    `CallPool`.
    """
    return PromptStore(open_backend(url, timeout_seconds))


def open_backend(url: str, timeout_seconds: float = REQUEST_SECONDS) -> ObjectBackend:
    """Each `memory://` is a new, empty one."""
    if not url.strip():
        raise InvalidInput.of("store", _RULE)
    scheme, separator, _ = url.partition("://")
    if not separator:
        return LocalBackend(expanded(url))
    if scheme == "memory":
        return MemoryBackend()
    if scheme == "file":
        parts = urlsplit(url)
        if parts.netloc not in {"", "localhost"} or not parts.path:
            raise InvalidInput.of(
                "store", f"{url[:200]!r}: file:// takes an absolute path on this machine, as in file:///var/lib/prompts"
            )
        return LocalBackend(Path(unquote(parts.path)))
    if scheme in _OBJECT_SCHEMES:
        from shared.store.object import ObjectStoreBackend

        return ObjectStoreBackend.open(url, timeout_seconds)
    raise InvalidInput.of("store", f"{url[:200]!r} {_RULE}")
