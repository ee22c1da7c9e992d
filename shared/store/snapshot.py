"""Snapshots: the whole index as one object, so that readers need not replay the log from its beginning."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

from pydantic import TypeAdapter

from shared.errors import DamagedBlob
from shared.store.checksum import with_checksum
from shared.store.commit import decoded
from shared.store.index import Alias, PromptRecord, StoreIndex, Tombstone, VersionRecord

SNAPSHOT_FORMAT = 1


@dataclass(frozen=True, slots=True)
class _Prompt:
    name: str
    latest_version: int
    versions: tuple[VersionRecord, ...]
    aliases: tuple[Alias, ...]
    tombstones: tuple[Tombstone, ...]


@dataclass(frozen=True, slots=True)
class _Snapshot:
    revision: int
    prompts: tuple[_Prompt, ...]
    format: int = SNAPSHOT_FORMAT


_SNAPSHOT = TypeAdapter(_Snapshot)


def encode_snapshot(index: StoreIndex) -> bytes:
    """The index as JSON, with a checksum."""
    prompts = (
        _Prompt(p.name, p.latest_version, tuple(p.versions.values()), tuple(p.aliases.values()), p.tombstones)
        for p in index.prompts.values()
    )
    return with_checksum(_SNAPSHOT.dump_json(_Snapshot(index.revision, tuple(prompts))))


def decode_snapshot(data: bytes, revision: int) -> StoreIndex:
    """The index from JSON. Raises DamagedBlob if it can't be read, is inconsistent, or has another revision."""
    snapshot = decoded(data, _SNAPSHOT, f"snapshot {revision}", SNAPSHOT_FORMAT, revision)
    if snapshot.revision != revision:
        raise DamagedBlob(f"snapshot {revision} contains revision {snapshot.revision}")
    index = StoreIndex(
        snapshot.revision, MappingProxyType({prompt.name: _record(prompt) for prompt in snapshot.prompts})
    )
    index.check_integrity()
    return index


def _record(prompt: _Prompt) -> PromptRecord:
    versions = MappingProxyType({record.version: record for record in prompt.versions})
    aliases = MappingProxyType({alias.name: alias for alias in prompt.aliases})
    return PromptRecord(prompt.name, prompt.latest_version, versions, aliases, prompt.tombstones)
