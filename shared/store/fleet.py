"""Combines the replicas' heartbeats: which replicas serve a version. Pure functions.

A replica should serve a version if it has the version's base model. Refusals are listed with their reasons, also those
of replicas with another base model, so that operators notice a replica with the wrong model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shared.store.index import VersionRecord
from shared.store.replicas import LoadedVersion, RefusedVersion, ReplicaRecord

_MAX_NAMED_REFUSALS = 3


@dataclass(frozen=True)
class Serving:
    """The state of one version on the live replicas."""

    suitable: frozenset[str] = frozenset()
    """Ids of the live replicas that have its base model."""
    served: tuple[tuple[str, LoadedVersion], ...] = ()
    """Ids of the replicas that serve it."""
    refused: tuple[tuple[str, RefusedVersion], ...] = ()
    """Ids of the replicas that refused it, also of other base models."""

    @property
    def num_replicas(self) -> int:
        """Number of replicas that should serve it."""
        return len(self.suitable)

    @property
    def num_refused(self) -> int:
        """Number of replicas that should serve it but refused it."""
        return sum(replica in self.suitable for replica, _ in self.refused)

    @property
    def by_all(self) -> bool:
        """Whether all replicas that should serve it do, and there is at least one."""
        return 0 < self.num_replicas == len(self.served)

    @property
    def is_decided(self) -> bool:
        """Whether waiting is pointless: all replicas that should serve it do, or one of them refused it."""
        return self.by_all or self.num_refused > 0

    def __str__(self) -> str:
        refusals = [
            f"{replica} refused it: {refusal.reason}" for replica, refusal in self.refused[:_MAX_NAMED_REFUSALS]
        ]
        more = (
            [f"{len(self.refused) - _MAX_NAMED_REFUSALS} more refused it"]
            if len(self.refused) > _MAX_NAMED_REFUSALS
            else []
        )
        return "; ".join([f"served by {len(self.served)} of {self.num_replicas} live replicas", *refusals, *more])


def serving(version: VersionRecord, replicas: Sequence[ReplicaRecord]) -> Serving:
    """The state of a version on `replicas`, the live ones.

    Records about a version with the same number and another digest, for example of an earlier store, don't count.
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
