"""Opens a store by its URL."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from shared.errors import InvalidInput, NotFound
from shared.process.user_cache import expanded
from shared.store.base import ObjectBackend
from shared.store.layout import LOG, STORE_KEY
from shared.store.local import LocalBackend
from shared.store.memory import MemoryBackend
from shared.store.store import PromptStore

OBJECT_SCHEMES = {"s3", "gs", "az", "abfs", "abfss"}
REQUEST_SECONDS = 30.0
RULE = (
    "must be a directory, file://DIRECTORY, memory://, s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or az://CONTAINER/PREFIX"
)


def open_store(url: str, timeout_seconds: float = REQUEST_SECONDS) -> PromptStore:
    """Open the store at `url`, or create it. Raises InvalidInput for an invalid URL, Unavailable if it is unavailable.

    `timeout_seconds` is the time limit of one request to an object store. A directory has no time limit, so call the
    store's methods in a `CallPool`.
    """
    return PromptStore(open_backend(url, timeout_seconds))


def open_existing(url: str) -> PromptStore:
    """The store at `url`. Raises NotFound if there is none, and creates nothing in a directory that is not a store."""
    return PromptStore(existing_backend(url))


def existing_backend(url: str, *, or_damaged: bool = False) -> ObjectBackend:
    """The backend of a store that exists; `or_damaged`: also of one that has a log and no `store.json`. Raises as
    `open_existing`.
    """
    scheme, separator, _ = url.partition("://")
    if url.strip() and (not separator or scheme == "file"):
        path = Path(unquote(urlsplit(url).path)) if separator else expanded(url)
        may_be_opened = path.is_file() or (path / STORE_KEY).is_file()  # `open_backend` says that the first is a file
        if not may_be_opened and not (or_damaged and (path / LOG).is_dir()):
            raise NotFound("prompt store", url[:200])
    backend = open_backend(url)
    if backend.head(STORE_KEY) is None and not (or_damaged and backend.list(LOG)):
        raise NotFound("prompt store", url[:200])
    return backend


def open_backend(url: str, timeout_seconds: float = REQUEST_SECONDS) -> ObjectBackend:
    """The backend for a URL; each `memory://` is new and empty. Raises as `open_store`."""
    if not url.strip():
        raise InvalidInput.of("store", RULE)
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
    if scheme in OBJECT_SCHEMES:
        from shared.store.object import ObjectStoreBackend

        return ObjectStoreBackend.open(url, timeout_seconds)
    raise InvalidInput.of("store", f"{url[:200]!r} {RULE}")
