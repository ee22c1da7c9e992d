"""The prompt store: `open_store(url)` returns a `PromptStore`, `StoreWatcher` follows its changes.

`log` appends commits to a backend (`base`: `local`, `object`, `memory`); `index` is the state after them, `snapshot`
spares readers the beginning; `follower` and `watch` notice changes. `alias`, `commit`, `replicas` and `identity` are
what is stored, `fleet` and `view` what is read from it; `maintenance` and `garbage` remove what nothing names. Knows
the names and digests of versions, and not what is in a blob. `docs/store.md` describes the layout and the protocol.
"""

from shared.store.alias import ANYTHING
from shared.store.commit import AliasMoved, AliasTarget, Commit, VersionDeleted, VersionPublished
from shared.store.follower import Changes
from shared.store.index import Alias, PromptRecord, StoreIndex, VersionRecord
from shared.store.open import open_store
from shared.store.replicas import LoadedVersion, RefusedVersion, ReplicaRecord
from shared.store.store import PromptStore, PublishedVersion
from shared.store.watch import StoreWatcher

__all__ = [
    "ANYTHING",
    "Alias",
    "AliasMoved",
    "AliasTarget",
    "Changes",
    "Commit",
    "LoadedVersion",
    "PromptRecord",
    "PromptStore",
    "PublishedVersion",
    "RefusedVersion",
    "ReplicaRecord",
    "StoreIndex",
    "StoreWatcher",
    "VersionDeleted",
    "VersionPublished",
    "VersionRecord",
    "open_store",
]
