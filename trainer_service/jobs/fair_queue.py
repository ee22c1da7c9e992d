"""Whose job goes next: weighted fair queueing between tenants. Pure: no clock, no I/O.

Each tenant has a virtual time: the seconds that its jobs have spent on workers, divided by its weight. Jobs that are on
a worker now count with at least `QUANTUM_SECONDS` each, so that a claim shows at once. The tenant with the least
virtual time goes next. Within a tenant, priority and age decide (`record.queue_key`).

The queue has a virtual time of its own, the least of the tenants that wait, which never goes back. A tenant starts no
earlier than that: what it did not use while it had nothing to run is not saved up. When nothing is left to wait, the
queue's time becomes the latest of all: what anybody used while there was enough for everybody counts against nobody.

After start-time fair queueing (Goyal, Vin, Cheng: "Start-time Fair Queuing", SIGCOMM 1996): unlike weighted fair
queueing it needs no length in advance, and nobody knows how long a job will train.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

QUANTUM_SECONDS = 60.0
"""Least charge of a job while it is on a worker. What it really took replaces it when the job leaves."""


@dataclass(frozen=True)
class QueueHead:
    """The jobs of one tenant for one base model that may run now."""

    base_model: str
    queue_key: float
    """Of the first of them."""
    num_jobs: int
    exclusive: int = 0
    """How many of them need a fresh worker of their own."""
    tenant: str = ""
    weight: float = 1.0
    start: float = 0.0
    """Start tag of the tenant (`queue_clock`)."""
    mean_key: float | None = None
    """Mean of their queue keys; None: that of the first."""


@dataclass(frozen=True)
class TenantShare:
    """What one tenant has had, in seconds of one job's place on a worker."""

    tenant: str
    weight: float = 1.0
    virtual_time: float = 0.0
    """Of its jobs that have left their workers."""
    clock: float = 0.0
    """The queue's virtual time when this tenant's latest job was claimed."""
    held_seconds: float = 0.0
    """Of its jobs that are on workers now: each one's time there, at least `QUANTUM_SECONDS`."""
    num_held: int = 0
    """How many these are."""

    @property
    def time(self) -> float:
        """Its virtual time now."""
        return self.virtual_time + self.held_seconds / self.weight


Shares = Mapping[str, TenantShare]
"""By tenant."""

Rank = tuple[float, float, str]
"""Start tag, virtual time, name: tenants with equal start tags go by what they had before, and last by name."""


def queue_clock(shares: Shares) -> float:
    """The queue's virtual time as of the latest claim."""
    return max((share.clock for share in shares.values()), default=0.0)


def rank(share: TenantShare, clock: float) -> Rank:
    """Where a tenant stands; the least goes next."""
    return max(clock, share.time), share.time, share.tenant


def share_of(shares: Shares, tenant: str) -> TenantShare:
    """A tenant that never had a job has had nothing."""
    return shares.get(tenant) or TenantShare(tenant)


def in_order(shares: Shares, tenants: Iterable[str]) -> list[str]:
    """These tenants, the one whose job goes next first."""
    clock = queue_clock(shares)
    return sorted(tenants, key=lambda tenant: rank(share_of(shares, tenant), clock))


def claimed(shares: Shares, tenant: str, waiting: Collection[str], *, is_last: bool) -> TenantShare:
    """The tenant's share after a job of its was claimed. `waiting`: tenants that waited before; `is_last`: no job waits
    any more.
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
    """Jobs that go before the tenant's own job number `index` (from 0), if all take equally long. `counts`: waiting
    jobs by tenant.
    """
    clock, mine = queue_clock(shares), share_of(shares, tenant)
    seconds = _expected_seconds(shares)
    start = max(clock, mine.time) + index * seconds / mine.weight
    before = index
    for other, count in counts.items():
        if other == tenant:
            continue
        theirs = share_of(shares, other)
        lead = round(
            (start - max(clock, theirs.time)) * theirs.weight / seconds, 9
        )  # equal tags are equal for both tenants
        if lead < 0:
            continue
        wins_ties = (theirs.time, other) < (mine.time, tenant)
        before += min(count, math.floor(lead) + 1 if wins_ties else math.ceil(lead))
    return before


def _expected_seconds(shares: Shares) -> float:
    """A guess at what one more job is charged: what those on workers have been, on average."""
    num_held = sum(share.num_held for share in shares.values())
    return max(QUANTUM_SECONDS, sum(share.held_seconds for share in shares.values()) / max(1, num_held))


def fair_part(max_jobs: int, weight: float, other_weights: Iterable[float]) -> int:
    """Of a queue of at most `max_jobs`: the part of a tenant of this weight beside others that have jobs in it, at
    least one job.
    """
    return max(1, int(max_jobs * weight / (weight + sum(other_weights))))


class Ledger:
    """Shares that are played forward: claims and departures at times that the caller names."""

    def __init__(self, shares: Shares, held_since: Iterable[tuple[str, float]] = ()) -> None:
        """`shares` without what is held now; `held_since`: tenant and time of the claim of each job that is on a
        worker.
        """
        self._shares = dict(shares)
        self._held: dict[str, list[float]] = {}
        for tenant, since in held_since:
            self._held.setdefault(tenant, []).append(since)

    def at(self, now: float) -> dict[str, TenantShare]:
        """The shares at that time."""
        return {tenant: self._at(tenant, now) for tenant in {*self._shares, *self._held}}

    def claim(self, tenant: str, waiting: Collection[str], now: float, *, is_last: bool) -> None:
        """One of the tenant's jobs goes to a worker; see `claimed`."""
        moved = claimed(self.at(now), tenant, waiting, is_last=is_last)
        self._shares[tenant] = replace(moved, held_seconds=0.0, num_held=0)
        self._held.setdefault(tenant, []).append(now)

    def leave(self, tenant: str, since: float, now: float) -> None:
        """A job that was claimed at `since` leaves its worker."""
        self._held[tenant].remove(since)
        share = share_of(self._shares, tenant)
        self._shares[tenant] = replace(share, virtual_time=share.virtual_time + (now - since) / share.weight)

    def _at(self, tenant: str, now: float) -> TenantShare:
        held = self._held.get(tenant, [])
        seconds = sum(max(QUANTUM_SECONDS, now - since) for since in held)
        return replace(share_of(self._shares, tenant), held_seconds=seconds, num_held=len(held))
