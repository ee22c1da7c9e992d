"""Records which tenant has which dataset, in the job database, so that rows change together with the jobs using them.

The bytes are files, stored once for all tenants (`store`). A tenant learns nothing about other tenants' datasets: the
same bytes count in full against each tenant's quota, and a name that is not the caller's is unknown even if another
tenant has it.

On PostgreSQL, locks are taken in this order: tenant, digest, row.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    Select,
    delete,
    exists,
    func,
    insert,
    or_,
    select,
    tuple_,
    update,
)

from shared.errors import Overloaded, PreconditionFailed
from shared.values import datasets as values
from shared.values.enums import TaskKind
from trainer_service.database.database import Database
from trainer_service.database.schema import datasets, job_datasets, jobs
from trainer_service.datasets.names import unknown_dataset
from trainer_service.datasets.store import StoredDataset

_FULL_RETRY_SECONDS = 3600.0
_MAX_NAMED_JOBS = 10


class DatasetLedger:
    """The rows. Methods block, are thread-safe, and raise Unavailable if the database is unavailable."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._touching_files = threading.Lock()
        """Held by transactions that access the datasets' volume: if the volume hangs, only one connection is blocked.
        """

    def add(
        self,
        tenant: str,
        stored: StoredDataset,
        allowed_bytes: int,
        place: Callable[[], None],
        *,
        sent: bool = True,
        file_name: str = "",
    ) -> None:
        """Give the dataset to the tenant and call `place`, which stores the bytes.

        `allowed_bytes`: the limit for all the tenant's datasets; 0: no limit. `sent`: the tenant sent the bytes itself,
        and not a URI. An empty `file_name` keeps the one that the dataset has. Raises Overloaded before `place`. After
        a crash following `place`, the bytes belong to no tenant; retention removes them.
        """
        now = time.time()
        values = {**_measures(stored), "last_use_time": now}
        values |= ({"sent": True} if sent else {}) | ({"file_name": file_name} if file_name else {})
        with self._touching_files, self._database.write() as connection:
            self._database.lock(connection, tenant)
            self._database.lock(connection, stored.name)
            _check_room(connection, tenant, stored.name, stored.size_bytes, allowed_bytes, {})
            place()
            if not connection.execute(update(datasets).where(_is(tenant, stored.name)).values(**values)).rowcount:
                connection.execute(
                    insert(datasets).values(tenant=tenant, dataset=stored.name, create_time=now, **values)
                )

    def check_room(
        self, tenant: str, name: str, size_bytes: int, allowed_bytes: int, beside: Mapping[str, int] | None = None
    ) -> None:
        """Raises Overloaded if a dataset of that size exceeds the tenant's limit. A stored one isn't counted twice.

        `beside`: sizes of further datasets by name that would be stored before it.
        """
        with self._database.read() as connection:
            _check_room(connection, tenant, name, size_bytes, allowed_bytes, beside or {})

    def require(self, tenant: str, names: Collection[str]) -> None:
        """Raises NotFound for the first dataset that the tenant doesn't have.

        The answer and its time don't depend on whether another tenant has it.
        """
        query = select(datasets.c.dataset).where(datasets.c.tenant == tenant, datasets.c.dataset.in_(names))
        found = frozenset(self._database.scalars(query))
        for name in names:
            if name not in found:
                raise unknown_dataset(name)

    def require_sent(self, tenant: str, name: str) -> None:
        """Raises NotFound if the tenant doesn't have the dataset, PreconditionFailed if it never sent the bytes itself:
        a copy of a file by URI may be one that its callers may use, but not read.
        """
        sent = self._database.scalar(select(datasets.c.sent).where(_is(tenant, name)))
        if sent is None:
            raise unknown_dataset(name)
        if not sent:
            raise PreconditionFailed(
                f"{name} was copied from a file that the trainer can read, so it can't be downloaded", dataset=name
            )

    def use(self, connection: Connection, tenant: str, names: Collection[str]) -> None:
        """Mark a new job's datasets as used, inside the transaction that creates it. Raises NotFound for a dataset that
        the tenant doesn't have.
        """
        for name in names:
            used = update(datasets).where(_is(tenant, name)).values(last_use_time=time.time())
            if not connection.execute(used).rowcount:
                raise unknown_dataset(name)

    def get(self, tenant: str, name: str) -> values.StoredDataset:
        """The tenant's dataset. Raises NotFound."""
        rows = self._database.rows(_owned(tenant).where(datasets.c.dataset == name))
        if not rows:
            raise unknown_dataset(name)
        return _from_row(rows[0])

    def page(self, tenant: str, after: str, limit: int) -> list[values.StoredDataset]:
        """At most `limit` of the tenant's datasets, with names after `after`, in the order of names."""
        query = _owned(tenant).where(datasets.c.dataset > after).order_by(datasets.c.dataset).limit(limit)
        return [_from_row(row) for row in self._database.rows(query)]

    def remove(self, tenant: str, name: str, may_see: Callable[[str], bool]) -> None:
        """Remove the tenant's row. The bytes stay (see `remove_bytes`). Raises NotFound, or PreconditionFailed if jobs
        of the tenant that have not ended use it; the error names those whose prompt passes `may_see`.
        """
        with self._database.write() as connection:
            row = connection.execute(select(datasets.c.dataset).where(_is(tenant, name)).with_for_update()).first()
            if row is None:
                raise unknown_dataset(name)
            # A job that is being created now has either updated the row already, or will not find it.
            users = connection.execute(_unended_users(name).where(jobs.c.tenant == tenant).order_by(jobs.c.id)).all()
            if users:
                shown = [f"tuningJobs/{row.id}" for row in users if may_see(row.prompt)][:_MAX_NAMED_JOBS]
                more = f" and {len(users) - len(shown)} more" if shown else f"{len(users)} jobs of your tenant"
                named = ", ".join(shown) + (more if len(users) > len(shown) else "")
                message = f"{name} is used by jobs that have not ended: {named}; cancel them or wait for their end"
                raise PreconditionFailed(message, dataset=name)
            connection.execute(delete(datasets).where(_is(tenant, name)))

    def remove_unused(self, tenant: str, name: str, before: float) -> bool:
        """Remove the tenant's row unless the dataset was used since `before`, or by a job that ended since then.
        Returns whether it was removed.
        """
        needed = exists(
            select(jobs.c.id)
            .join(job_datasets, job_datasets.c.job_id == jobs.c.id)
            .where(
                job_datasets.c.dataset == name,
                jobs.c.tenant == tenant,
                or_(jobs.c.end_time.is_(None), jobs.c.end_time >= before),
            )
        )
        unused = delete(datasets).where(_is(tenant, name), datasets.c.last_use_time < before, ~needed)
        return bool(self._database.execute(unused))

    def remove_bytes(self, name: str, remove: Callable[[str], bool]) -> bool:
        """Call `remove` unless a tenant has the dataset or a job that has not ended needs it.

        A lock excludes uploads of the same bytes meanwhile. Returns whether the bytes were removed.
        """
        owners = select(datasets.c.tenant).where(datasets.c.dataset == name)
        with self._touching_files, self._database.write() as connection:
            self._database.lock(connection, name)
            needed_by = (connection.execute(query.limit(1)).first() for query in (owners, _unended_users(name)))
            return not any(needed_by) and remove(name)

    def owned(self, names: Collection[str]) -> frozenset[str]:
        """The datasets among `names` that any tenant has."""
        return frozenset(self._database.scalars(select(datasets.c.dataset).where(datasets.c.dataset.in_(names))))

    def last_used_before(self, before: float, after: tuple[str, str], limit: int) -> Sequence[Row[str, str, float]]:
        """(tenant, name, time of last use) of at most `limit` datasets after `after`, ordered by tenant and name."""
        keys = datasets.c.tenant, datasets.c.dataset
        query = select(*keys, datasets.c.last_use_time).where(datasets.c.last_use_time < before, tuple_(*keys) > after)
        return self._database.rows(query.order_by(*keys).limit(limit))

    def unmeasured(self, after: str, limit: int) -> Sequence[str]:
        """At most `limit` datasets of an older release that are not measured yet, after `after`, ordered by name."""
        query = select(datasets.c.dataset).where(datasets.c.num_examples == 0, datasets.c.dataset > after).distinct()
        return self._database.scalars(query.order_by(datasets.c.dataset).limit(limit))

    def set_measures(self, stored: StoredDataset) -> None:
        """Record a dataset's size and counts for all tenants that have it."""
        self._database.execute(update(datasets).where(datasets.c.dataset == stored.name).values(**_measures(stored)))


def _is(tenant: str, name: str) -> ColumnElement[bool]:
    return (datasets.c.tenant == tenant) & (datasets.c.dataset == name)


def _measures(stored: StoredDataset) -> dict[str, object]:
    return {
        "size_bytes": stored.size_bytes,
        "num_examples": stored.num_examples,
        "task": stored.task.value,
        "num_labels": len(stored.labels),
    }


def _check_room(
    connection: Connection, tenant: str, name: str, size_bytes: int, allowed_bytes: int, beside: Mapping[str, int]
) -> None:
    if not allowed_bytes:
        return
    apart = {other: size for other, size in beside.items() if other != name}
    others = select(func.coalesce(func.sum(datasets.c.size_bytes), 0)).where(
        datasets.c.tenant == tenant, datasets.c.dataset.not_in([name, *apart])
    )
    used = int(connection.scalar(others) or 0) + sum(apart.values())
    if used + size_bytes > allowed_bytes:
        raise Overloaded(
            f"your tenant's datasets take {used} of {allowed_bytes} bytes, and this one has {size_bytes}: "
            "delete some that you don't need (softprompt datasets list, softprompt datasets delete NAME)",
            retry_after_seconds=_FULL_RETRY_SECONDS,
            used_bytes=used,
            allowed_bytes=allowed_bytes,
        )


def _unended_users(name: str) -> Select[tuple[str, str]]:
    """The jobs of all tenants that use the dataset and have not ended."""
    query = select(jobs.c.id, jobs.c.prompt).join(job_datasets, job_datasets.c.job_id == jobs.c.id)
    return query.where(job_datasets.c.dataset == name, jobs.c.end_time.is_(None))


def _owned(tenant: str) -> Select[tuple[object, ...]]:
    uses = select(func.count()).select_from(job_datasets.join(jobs, job_datasets.c.job_id == jobs.c.id))
    uses = uses.where(job_datasets.c.dataset == datasets.c.dataset, jobs.c.tenant == tenant)
    return select(datasets, uses.scalar_subquery().label("num_jobs")).where(datasets.c.tenant == tenant)


def _from_row(row: Row[Any]) -> values.StoredDataset:
    return values.StoredDataset(
        name=row.dataset,
        size_bytes=row.size_bytes,
        num_examples=row.num_examples,
        task=TaskKind(row.task) if row.task else None,
        num_labels=row.num_labels,
        create_time=datetime.fromtimestamp(row.create_time, UTC),
        last_use_time=datetime.fromtimestamp(row.last_use_time, UTC),
        num_jobs=row.num_jobs,
        file_name=row.file_name,
    )
