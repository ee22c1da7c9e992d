"""Trainers with a common PostgreSQL database share one limit of workers: each has a number of slots, stored as a row,
and runs no more workers than that.

A slot is taken before a worker is launched and kept until the worker has ended. Slots are leased like jobs: the slots
of a dead replica become free once its last job has been taken over. A replica that was only slow then has no slots and
launches no workers until it gets new ones.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, bindparam, delete, insert, select, update

from trainer_service.database.database import Database
from trainer_service.database.schema import jobs, worker_slots
from trainer_service.jobs.store.conditions import LEASED

_LOCK = "worker slots"
_ALL = select(worker_slots)
_CHANGE = update(worker_slots).where(worker_slots.c.owner == bindparam("replica"))
_REMOVE_EXPIRED = delete(worker_slots).where(
    worker_slots.c.lease_until < bindparam("lease_before"),
    worker_slots.c.owner != bindparam("except_owner"),
    worker_slots.c.owner.not_in(select(jobs.c.owner).where(LEASED)),
)
_RENEW = _CHANGE.values(lease_until=bindparam("until"))


@dataclass(frozen=True)
class OfModel:
    """A replica's workers of a base model that has its own limits, and how many it wants."""

    num_workers: int
    """Its workers that have not ended."""
    wanted: int
    """Its workers and those that it would launch."""
    most: int | None = None
    """Limit of all replicas together."""


@dataclass(frozen=True)
class Slots:
    """A replica's part of the workers."""

    granted: int
    """Number of workers that this replica may have now."""
    others_lack: bool = False
    """Whether another replica wants more slots than it has."""
    beyond_part: bool = False
    """Whether `granted` is more than an equal part of the limit."""
    of_models: Mapping[str, int] = field(default_factory=dict)
    """Workers that this replica may have now, by base model that has its own limits."""
    elsewhere: Mapping[str, int] = field(default_factory=dict)
    """The same of all other replicas together."""
    ahead: Mapping[str, int] = field(default_factory=dict)
    """Workers that have not ended of the replicas whose names sort before this one's."""


def share(
    database: Database,
    owner: str,
    wanted: int,
    *,
    max_workers: int,
    lease_until: float,
    beyond_part: bool,
    num_workers: int = 0,
    models: Mapping[str, OfModel] | None = None,
) -> Slots:
    """Changes the owner's slots to `wanted`, as far as slots are free. The owner keeps the slots that it has and wants.

    `wanted` includes the owner's workers that have not ended. `max_workers` is the limit of all replicas together. New
    slots bring the owner up to an equal part of the limit, rounded up; with `beyond_part` also beyond it, if no other
    replica lacks the slots for its own part.

    `models`: of each base model with its own limits. The owner gets as many workers as others leave, and reserves those
    that it can launch beside its `num_workers`.
    """
    with database.write() as connection:
        database.lock(connection, _LOCK)
        rows = {row.owner: row for row in connection.execute(_ALL)}
        own = rows.pop(owner, None)
        kept = 0 if own is None else min(own.slots, wanted)
        free = max_workers - kept - sum(row.slots for row in rows.values())
        part = math.ceil(max_workers / (len(rows) + 1))
        granted = max(kept, min(wanted, part, kept + free))
        if beyond_part:
            for_others = sum(min(row.lacking, max(0, part - row.slots)) for row in rows.values())
            granted = max(granted, min(wanted, kept + free - for_others))
        elsewhere = _sum_of("reserved", rows.values())
        ahead = _sum_of("running", (row for row in rows.values() if row.owner < owner))
        room, of_models, reserved = max(0, granted - num_workers), dict[str, int](), dict[str, int]()
        for name, model in (models or {}).items():
            free_of_model = granted if model.most is None else max(0, model.most - elsewhere[name])
            of_models[name] = min(free_of_model, model.wanted, model.num_workers + room)
            if number := max(of_models[name], model.num_workers):
                reserved[name] = number
        running = {name: model.num_workers for name, model in (models or {}).items() if model.num_workers}
        stored = json.dumps({"reserved": reserved, "running": running}, sort_keys=True)
        values = {"slots": granted, "lacking": wanted - granted, "base_models": stored}
        if own is None:
            connection.execute(insert(worker_slots).values(owner=owner, lease_until=lease_until, **values))
        elif (own.slots, own.lacking, own.base_models) != tuple(values.values()):
            connection.execute(_CHANGE, {"replica": owner, **values})
        others_lack = any(row.lacking > 0 for row in rows.values())
        return Slots(granted, others_lack, granted > part, of_models, elsewhere, ahead)


def _sum_of(kind: str, rows: Iterable[Any]) -> Counter[str]:
    """Workers by base model. A reserved one may not have been launched, and so serves nothing yet."""
    return sum((Counter[str](json.loads(row.base_models).get(kind, {})) for row in rows), Counter[str]())


def renew(connection: Connection, owner: str, lease_until: float) -> None:
    """Renews the lease on the owner's slots."""
    connection.execute(_RENEW, {"replica": owner, "until": lease_until})


def remove_expired(connection: Connection, lease_before: float, except_owner: str) -> None:
    """Removes the slots of replicas whose lease ended before `lease_before` and that have no more jobs.

    A replica that still has a job keeps its slots: a job claimed later has a later lease, and its worker takes a slot.
    """
    connection.execute(_REMOVE_EXPIRED, {"lease_before": lease_before, "except_owner": except_owner})


def release(database: Database, owner: str) -> None:
    """Removes all slots of the owner. To be called once its workers have ended."""
    database.execute(delete(worker_slots).where(worker_slots.c.owner == owner))
