"""Stores objects in S3, R2, GCS, Azure or a compatible service, with obstore (the extra `object-store`).

Credentials, region and endpoint come from the environment variables of each cloud's tools (`AWS_*`, `GOOGLE_*`,
`AZURE_*`). Some servers accept conditional writes but ignore the condition. On such a store two publishers would
overwrite each other, so `open` tests this and refuses the store.
"""

from __future__ import annotations

import contextlib
import os
import re
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, cast

from shared.errors import InvalidInput, PreconditionFailed, Unavailable
from shared.store.base import ObjectInfo, check_key, check_size

if TYPE_CHECKING:
    from obstore import ObjectMeta
    from obstore.store import ClientConfig, ObjectStore, RetryConfig

_PROBES = "probe/"
_STALE_PROBE_SECONDS = 3600
_ENDPOINTS = ("AWS_ENDPOINT", "AWS_ENDPOINT_URL", "AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT")
_PLAIN_GOOGLE = re.compile(r'"gcs_base_url"\s*:\s*"http://')  # in a service account's key, as used for emulators
_RETRY: RetryConfig = {
    "max_retries": 3,
    "retry_timeout": timedelta(seconds=15),
    "backoff": {"init_backoff": timedelta(milliseconds=50), "max_backoff": timedelta(seconds=2), "base": 2},
}


class ObjectStoreBackend:
    """An `ObjectBackend` in one bucket, below a prefix."""

    poll_seconds = 2.0

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    @classmethod
    def open(cls, url: str, timeout_seconds: float = 30.0) -> ObjectStoreBackend:
        """The backend for a URL. `timeout_seconds` is the time limit of one request.

        Raises InvalidInput for a URL that names no bucket, PreconditionFailed if the extra is missing or the store
        ignores conditional writes.
        """
        try:
            from obstore.exceptions import BaseError
            from obstore.store import from_url
        except ImportError as error:
            raise PreconditionFailed(
                "stores in S3, GCS and Azure need the extra: pip install 'softprompt[object-store]'"
            ) from error
        try:
            backend = cls(from_url(url, client_options=_client_options(timeout_seconds), retry_config=_RETRY))
        except (BaseError, ValueError) as error:
            raise InvalidInput.of(
                "store", f"{url[:200]!r} can't be opened: the URL or the cloud's environment variables are wrong"
            ) from error
        backend.check_conditional_writes()
        return backend

    def check_conditional_writes(self) -> None:
        """Raises PreconditionFailed if an object can be created twice."""
        key = f"{_PROBES}{uuid.uuid4().hex}"
        try:
            first, second = self.create(key, b"first"), self.create(key, b"second")
            kept = self.get(key, max_bytes=64)
        finally:
            with contextlib.suppress(Unavailable):
                self.delete(key)
        if not first or second or kept != b"first":
            raise PreconditionFailed(
                "this object store ignores conditional writes (If-None-Match): publishers would overwrite each other"
            )

    def get(self, key: str, max_bytes: int) -> bytes | None:
        with _as_unavailable():
            try:
                result = self._store.get(check_key(key))
            except FileNotFoundError:
                return None
            check_size(key, result.meta["size"], max_bytes)
            return bytes(result.bytes())

    def create(self, key: str, data: bytes) -> bool:
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        with _as_unavailable():
            try:
                self._store.put(check_key(key), data, mode="create", use_multipart=False)
            except (AlreadyExistsError, PreconditionError):
                return False
            return True

    def put(self, key: str, data: bytes) -> None:
        with _as_unavailable():
            self._store.put(check_key(key), data, mode="overwrite", use_multipart=False)

    def head(self, key: str) -> ObjectInfo | None:
        with _as_unavailable():
            try:
                return _info(self._store.head(check_key(key)))
            except FileNotFoundError:
                return None

    def list(self, folder: str) -> list[ObjectInfo]:
        with _as_unavailable():
            pages = self._store.list(folder.rstrip("/"), chunk_size=1000)
            infos = [_info(meta) for page in pages for meta in cast("list[ObjectMeta]", page)]
        return sorted(infos, key=lambda info: info.key)

    def delete(self, key: str) -> None:
        with _as_unavailable(), contextlib.suppress(FileNotFoundError):
            self._store.delete(check_key(key))

    def sweep(self) -> int:
        """Remove probes of services that were killed at their start. Other writes are atomic."""
        oldest = datetime.now(UTC) - timedelta(seconds=_STALE_PROBE_SECONDS)
        left = [info.key for info in self.list(_PROBES) if info.modified_at < oldest]
        for key in left:
            self.delete(key)
        return len(left)

    def close(self) -> None:
        """Does nothing: obstore has no close method; connections are released with the object."""


def _client_options(timeout_seconds: float) -> ClientConfig:
    """Time limits of a whole request and of its connection; plain HTTP only if an endpoint has that scheme."""
    plain = any(os.environ.get(name, "").startswith("http://") for name in _ENDPOINTS)
    plain = plain or _PLAIN_GOOGLE.search(os.environ.get("GOOGLE_SERVICE_ACCOUNT_KEY", "")) is not None
    timeout, connect_timeout = timedelta(seconds=timeout_seconds), timedelta(seconds=min(5.0, timeout_seconds))
    return {"connect_timeout": connect_timeout, "timeout": timeout, "allow_http": plain}


def _info(meta: ObjectMeta) -> ObjectInfo:
    return ObjectInfo(meta["path"], meta["size"], meta["last_modified"].astimezone(UTC))


@contextlib.contextmanager
def _as_unavailable() -> Iterator[None]:
    """Convert errors to Unavailable, without addresses, request ids or credentials in the text."""
    from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError

    try:
        yield
    except (PermissionDeniedError, UnauthenticatedError) as error:
        raise Unavailable("the prompt store refuses this service's credentials") from error
    except FileNotFoundError as error:
        raise Unavailable("the prompt store's bucket does not exist") from error
    except (BaseError, OSError) as error:
        raise Unavailable("the prompt store does not answer") from error
