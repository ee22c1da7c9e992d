"""Which replicas serve a version: what the heartbeats say, put together. Pure.

A replica should serve a version if it holds the version's base model. Those that refused it are told with their
reasons, those with another base model, too: an operator who pointed a replica at the wrong model learns it here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shared.store.index import VersionRecord
from shared.store.replicas import LoadedVersion, RefusedVersion, ReplicaRecord

_MAX_TOLD_REFUSALS = 3


@dataclass(frozen=True)
class Serving:
    """One version across the live replicas; `served` and `refused` by replica id."""

    suitable: frozenset[str] = frozenset()
    """Live replicas of its base model."""
    served: tuple[tuple[str, LoadedVersion], ...] = ()
    refused: tuple[tuple[str, RefusedVersion], ...] = ()

    @property
    def num_replicas(self) -> int:
        return len(self.suitable)

    @property
    def num_refused(self) -> int:
        """Replicas of its base model among those that refused it."""
        return sum(replica in self.suitable for replica, _ in self.refused)

    @property
    def by_all(self) -> bool:
        return 0 < self.num_replicas == len(self.served)

    @property
    def is_decided(self) -> bool:
        """Waiting longer changes nothing: all serve it, or one that should never will."""
        return self.by_all or self.num_refused > 0

    def __str__(self) -> str:
        told = [f"{replica} refused it: {refusal.reason}" for replica, refusal in self.refused[:_MAX_TOLD_REFUSALS]]
        more = (
            [f"{len(self.refused) - _MAX_TOLD_REFUSALS} more refused it"]
            if len(self.refused) > _MAX_TOLD_REFUSALS
            else []
        )
        return "; ".join([f"served by {len(self.served)} of {self.num_replicas} live replicas", *told, *more])


def serving(version: VersionRecord, replicas: Sequence[ReplicaRecord]) -> Serving:
    """`replicas`: the live ones. A record about other bytes under the same number, from another store's time, does not
    count.
    """
    fingerprint = version.summary.base_model_fingerprint
    suitable = frozenset(replica.id for replica in replicas if replica.base_model_fingerprint == fingerprint)
    served = [
        (replica.id, item)
        for replica in replicas
        for item in replica.loaded
        if replica.id in suitable and _is(item, version)
    ]
    refused = [(replica.id, item) for replica in replicas for item in replica.refused if _is(item, version)]
    return Serving(suitable, tuple(served), tuple(refused))


def _is(item: LoadedVersion | RefusedVersion, version: VersionRecord) -> bool:
    return (item.prompt, item.version, item.digest) == (version.prompt, version.version, version.digest)
