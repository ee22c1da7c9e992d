"""Opens a store by its URL."""

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
    """Open the store at `url`, or create it. Raises InvalidInput for an invalid URL, Unavailable if it is unavailable.

    `timeout_seconds` is the time limit of one request to an object store. A directory has no time limit, so call the
    store's methods in a `CallPool`.
    """
    return PromptStore(open_backend(url, timeout_seconds))


def open_backend(url: str, timeout_seconds: float = REQUEST_SECONDS) -> ObjectBackend:
    """The backend for a URL; each `memory://` is new and empty. Raises as `open_store`."""
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
                "store", f"{url[:200]!r}: file:// needs an absolute path on this machine, as in file:///var/lib/prompts"
            )
        return LocalBackend(Path(unquote(parts.path)))
    if scheme in _OBJECT_SCHEMES:
        from shared.store.object import ObjectStoreBackend

        return ObjectStoreBackend.open(url, timeout_seconds)
    raise InvalidInput.of("store", f"{url[:200]!r} {_RULE}")
