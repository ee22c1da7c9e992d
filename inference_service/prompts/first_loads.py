"""Selects the versions that a replica loads before it is ready; others are loaded on their first request."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from shared.names import DEFAULT_ALIAS
from shared.store import Alias, StoreIndex
from shared.store.replicas import ReplicaRecord

AliasKey = tuple[str, str]
"""Prompt and alias."""


@dataclass(frozen=True)
class StartLimits:
    """Limits of the loads before a replica is ready."""

    max_versions: int = 64
    """Maximum number of versions to load; 0 means every version that an alias names."""
    max_seconds: float = 120.0
    """Maximum time; unfinished loads continue while the replica serves."""


def recently_used(replicas: Iterable[ReplicaRecord]) -> list[str]:
    """Prompts that the fleet used recently: alternately from each replica, the latest first."""
    lists = [replica.recent for replica in replicas]
    longest = max(map(len, lists), default=0)
    return list(dict.fromkeys(names[rank] for rank in range(longest) for names in lists if rank < len(names)))


def left_for_later(index: StoreIndex, recent: Sequence[str], max_versions: int) -> dict[AliasKey, Alias]:
    """The aliases to load on their first request, so that the others name at most `max_versions` versions.

    Default aliases of the prompts in `recent` come first, in that order, then other default aliases, then the rest;
    within a group the most recently moved alias comes first.
    """
    ranks = {name: rank for rank, name in enumerate(recent)}
    aliases = [(prompt, alias) for prompt, record in index.prompts.items() for alias in record.aliases.values()]
    aliases.sort(key=lambda item: (item[1].name != DEFAULT_ALIAS, ranks.get(item[0], len(ranks)), -item[1].revision))
    chosen, later = set[tuple[str, int]](), dict[AliasKey, Alias]()
    for prompt, alias in aliases:
        versions = chosen | {(prompt, target.version) for target in alias.targets}
        if max_versions and len(versions) > max_versions:
            later[prompt, alias.name] = alias
        else:
            chosen = versions
    return later
