"""Weighted fair queueing between tenants: whose job goes next. Pure: no clock, no I/O.

Each tenant has a virtual time: the seconds that its jobs have spent on workers, divided by its weight. Each job on a
worker counts with at least `QUANTUM_SECONDS`, so that a claim has an effect at once. The tenant with the smallest
virtual time goes next. Within a tenant, priority and age decide (`record.queue_key`).

The queue also has a virtual time: the smallest of the waiting tenants, which never decreases. A tenant starts no
earlier than that, so unused time is not saved up. When no job waits any more, the queue's time becomes the largest of
all tenants: time used while there was room for all jobs counts against no tenant.

After start-time fair queueing (Goyal, Vin, Cheng: "Start-time Fair Queuing", SIGCOMM 1996): unlike weighted fair
queueing, it doesn't need the durations of jobs in advance, which are unknown here.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

QUANTUM_SECONDS = 60.0
"""Smallest charge for a job while it is on a worker. The actual time replaces it when the job leaves."""


@dataclass(frozen=True)
class QueueHead:
    """The jobs of one tenant for one base model that may run now: the ordinary ones, or the exclusive ones."""

    base_model: str
    queue_key: float
    """Queue key of the first job."""
    num_jobs: int
    exclusive: bool = False
    """Whether each of the jobs needs a fresh worker for itself."""
    tenant: str = ""
    weight: float = 1.0
    start: float = 0.0
    """Start tag of the tenant (`queue_clock`)."""
    mean_key: float | None = None
    """Mean of the queue keys, in seconds; a smaller key is older. None: the key of the first job."""


@dataclass(frozen=True)
class TenantShare:
    """The time that one tenant's jobs have spent on workers."""

    tenant: str
    weight: float = 1.0
    virtual_time: float = 0.0
    """Weighted seconds of the jobs that have left their workers."""
    clock: float = 0.0
    """The queue's virtual time when this tenant's latest job was claimed."""
    held_seconds: float = 0.0
    """Sum over its jobs on workers now: the time of each there, at least `QUANTUM_SECONDS`."""
    num_held: int = 0
    """Number of its jobs on workers now."""

    @property
    def time(self) -> float:
        """The tenant's virtual time now."""
        return self.virtual_time + self.held_seconds / self.weight


Shares = Mapping[str, TenantShare]
"""Shares by tenant."""


def queue_clock(shares: Shares) -> float:
    """The queue's virtual time as of the latest claim."""
    return max((share.clock for share in shares.values()), default=0.0)


def share_of(shares: Shares, tenant: str) -> TenantShare:
    """The tenant's share; an empty one for a tenant that never had a job."""
    return shares.get(tenant) or TenantShare(tenant)


def in_order(shares: Shares, tenants: Iterable[str]) -> list[str]:
    """The tenants in the order in which their jobs go: by start tag, then by virtual time, then by name."""
    clock = queue_clock(shares)

    def rank(tenant: str) -> tuple[float, float, str]:
        time = share_of(shares, tenant).time
        return max(clock, time), time, tenant

    return sorted(tenants, key=rank)


def claimed(shares: Shares, tenant: str, waiting: Collection[str], *, is_last: bool) -> TenantShare:
    """The tenant's share after one of its jobs was claimed. `waiting`: tenants with waiting jobs before the claim;
    `is_last`: no job waits after it.
    """
    clock, share = queue_clock(shares), share_of(shares, tenant)
    start = max(clock, share.time)
    moved = replace(
        share,
        virtual_time=start - share.held_seconds / share.weight,
        held_seconds=share.held_seconds + QUANTUM_SECONDS,
        num_held=share.num_held + 1,
    )
    if is_last:
        clock = max(clock, moved.time, *(other.time for other in shares.values()))
    else:
        clock = max(clock, min((share_of(shares, other).time for other in {*waiting, tenant}), default=clock))
    return replace(moved, clock=clock)


def positions_before(shares: Shares, counts: Mapping[str, int], tenant: str, index: int) -> int:
    """Number of jobs that go before job `index` (from 0) of the tenant, if all take equally long.

    `counts`: waiting jobs by tenant.
    """
    clock, own = queue_clock(shares), share_of(shares, tenant)
    seconds = _expected_seconds(shares)
    start = max(clock, own.time) + index * seconds / own.weight
    before = index
    for other, count in counts.items():
        if other == tenant:
            continue
        share = share_of(shares, other)
        # Rounded, so that equal tags compare as equal for both tenants.
        lead = round((start - max(clock, share.time)) * share.weight / seconds, 9)
        if lead < 0:
            continue
        wins_ties = (share.time, other) < (own.time, tenant)
        before += min(count, math.floor(lead) + 1 if wins_ties else math.ceil(lead))
    return before


def _expected_seconds(shares: Shares) -> float:
    """The expected charge for one more job: the mean charge of the jobs on workers."""
    num_held = sum(share.num_held for share in shares.values())
    return max(QUANTUM_SECONDS, sum(share.held_seconds for share in shares.values()) / max(1, num_held))


def fair_part(max_jobs: int, weight: float, other_weights: Iterable[float]) -> int:
    """A tenant's part of a queue of `max_jobs` jobs, at least one. `other_weights`: of the other tenants in it."""
    return max(1, int(max_jobs * weight / (weight + sum(other_weights))))


class Ledger:
    """Shares for a simulation: the caller gives the times of claims and departures."""

    def __init__(self, shares: Shares, held_since: Iterable[tuple[str, float]] = ()) -> None:
        """`shares` doesn't count the jobs on workers now; `held_since` has the tenant and claim time of each."""
        self._shares = dict(shares)
        self._held: dict[str, list[float]] = {}
        for tenant, since in held_since:
            self._held.setdefault(tenant, []).append(since)

    def at(self, now: float) -> dict[str, TenantShare]:
        """The shares at that time."""
        return {tenant: self._at(tenant, now) for tenant in {*self._shares, *self._held}}

    def claim(self, tenant: str, waiting: Collection[str], now: float, *, is_last: bool) -> None:
        """Records that one of the tenant's jobs goes to a worker; see `claimed`."""
        moved = claimed(self.at(now), tenant, waiting, is_last=is_last)
        self._shares[tenant] = replace(moved, held_seconds=0.0, num_held=0)
        self._held.setdefault(tenant, []).append(now)

    def leave(self, tenant: str, since: float, now: float) -> None:
        """Records that a job claimed at `since` leaves its worker."""
        self._held[tenant].remove(since)
        share = share_of(self._shares, tenant)
        self._shares[tenant] = replace(share, virtual_time=share.virtual_time + (now - since) / share.weight)

    def _at(self, tenant: str, now: float) -> TenantShare:
        held = self._held.get(tenant, [])
        seconds = sum(max(QUANTUM_SECONDS, now - since) for since in held)
        return replace(share_of(self._shares, tenant), held_seconds=seconds, num_held=len(held))
