"""The prompt store: `open_store(url)` returns a `PromptStore`, `StoreWatcher` follows its changes.

`docs/store.md` describes the layout and the protocol.
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
