"""Datasets as callers see them: each tenant has separate datasets, even if several tenants have the same bytes.

Joins the files (`store`) with the rows that say which tenant has them (`ledger`). A tenant can't find out about another
tenant's datasets: an upload takes the same steps and time, and counts the same, whether or not the bytes were stored
before.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from typing import BinaryIO

from shared.caller import Tenant
from shared.errors import InvalidInput, Unavailable
from shared.process.call_pool import CallPool
from shared.values import datasets as values
from trainer_service.datasets.ledger import DatasetLedger
from trainer_service.datasets.names import dataset_name
from trainer_service.datasets.roots import DatasetRoots
from trainer_service.datasets.store import DatasetStore, Inspected, Keep, Source, StoredDataset
from trainer_service.pages import MAX_PAGE_SIZE

log = logging.getLogger(__name__)

MAX_FILE_NAME_CHARS = 255


class TenantDatasets:
    """The datasets of all tenants. Synchronous methods block: call them in `pool`.

    `dataset_bytes`: the default limit for one tenant's datasets; 0: no limit.
    """

    def __init__(self, store: DatasetStore, ledger: DatasetLedger, dataset_bytes: int = 0) -> None:
        self._store, self._ledger, self._dataset_bytes = store, ledger, dataset_bytes

    @property
    def pool(self) -> CallPool:
        """The pool for all calls but those that read a URI."""
        return self._store.pool

    def pool_of(self, source: Source) -> CallPool:
        """The pool for `add` and `inspect`: a URI's dataset root may be on another volume."""
        return self._store.roots_pool if isinstance(source, str) else self._store.pool

    async def receive(
        self,
        tenant: Tenant,
        chunks: AsyncIterator[bytes],
        *,
        size_bytes: int = 0,
        digest: str = "",
        labels: Sequence[str] = (),
        file_name: str = "",
    ) -> StoredDataset:
        """`DatasetStore.receive` for a tenant. Raises Overloaded before the first byte is read if the tenant's limit is
        reached, InvalidInput for a file's name that can't be kept.
        """
        if len(file_name) > MAX_FILE_NAME_CHARS or not file_name.isprintable():
            text = f"must have at most {MAX_FILE_NAME_CHARS} characters and no control characters"
            raise InvalidInput.of("header.file_name", text)
        self._store.check_announcement(size_bytes, digest)
        name = dataset_name(digest.removeprefix("sha256:"))
        await self.pool.call(self._ledger.check_room, tenant.name, name, max(1, size_bytes), self._allowed(tenant))
        return await self._store.receive(
            chunks, size_bytes=size_bytes, digest=digest, labels=labels, keep=self._keep(tenant, file_name)
        )

    def add(self, tenant: Tenant, source: Source, field: str, labels: Sequence[str] = ()) -> StoredDataset:
        """`DatasetStore.add` for a tenant; URIs are under its roots, or under the service's if it has none configured.
        Raises InvalidInput or Overloaded.
        """
        keep = self._keep(tenant, sent=not isinstance(source, str))
        return self._store.add(source, field, labels, roots=_roots_of(tenant), keep=keep)

    def inspect(
        self, tenant: Tenant, source: Source, field: str, labels: Sequence[str] = (), beside: Sequence[Inspected] = ()
    ) -> Inspected:
        """What `add` would store after those `beside`. Raises what `add` raises, and stores nothing."""
        inspected = self._store.inspect(source, field, labels, roots=_roots_of(tenant))
        dataset, sizes = inspected.dataset, {other.dataset.name: other.dataset.size_bytes for other in beside}
        self._ledger.check_room(tenant.name, dataset.name, dataset.size_bytes, self._allowed(tenant), sizes)
        return inspected

    def labels(self, tenant: Tenant, name: str) -> tuple[str, ...]:
        """The labels that occur in a dataset. Raises NotFound if the tenant doesn't have it."""
        self._ledger.require(tenant.name, (name,))
        return self._store.describe(name)[0].labels

    def get(self, tenant: Tenant, name: str) -> values.StoredDataset:
        """A dataset, with its labels if they are known. Raises NotFound."""
        return replace(self._ledger.get(tenant.name, name), labels=self._store.known_labels(name))

    def page(self, tenant: Tenant, page_size: int, after: str = "") -> tuple[list[values.StoredDataset], bool]:
        """At most `page_size` datasets with names after `after`, ordered by name; and whether more follow."""
        size = max(1, min(page_size, MAX_PAGE_SIZE))
        found = self._ledger.page(tenant.name, after, size + 1)
        return found[:size], len(found) > size

    def open(self, tenant: Tenant, name: str) -> BinaryIO:
        """The bytes of a dataset, to be closed by the caller. Raises NotFound if the tenant doesn't have it,
        PreconditionFailed if it has only named a URI with these bytes.
        """
        self._ledger.require_sent(tenant.name, name)
        return self._store.open(name)

    def delete(self, tenant: Tenant, name: str, may_see: Callable[[str], bool]) -> None:
        """Delete the tenant's dataset. The bytes are removed when no tenant has them. Raises NotFound, or
        PreconditionFailed if jobs of the tenant still need it; the error names those whose prompt passes `may_see`.
        """
        self._ledger.remove(tenant.name, name, may_see)
        try:
            self._ledger.remove_bytes(name, self._store.remove)
        except Unavailable as error:  # the tenant's row is removed; retention removes bytes that no tenant has
            log.warning(
                "bytes of a deleted dataset are left for now: %s", error.message, extra={"fields": {"dataset": name}}
            )

    def _allowed(self, tenant: Tenant) -> int:
        return self._dataset_bytes if tenant.dataset_bytes is None else tenant.dataset_bytes

    def _keep(self, tenant: Tenant, file_name: str = "", sent: bool = True) -> Keep:
        return lambda stored, place: self._ledger.add(
            tenant.name, stored, self._allowed(tenant), place, sent=sent, file_name=file_name
        )


def _roots_of(tenant: Tenant) -> DatasetRoots | None:
    return None if tenant.dataset_roots is None else DatasetRoots(tenant.dataset_roots)
