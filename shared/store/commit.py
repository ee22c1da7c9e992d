"""One entry of the store's log: its content and its JSON form.

An entry is immutable, and its number is the store-wide revision. Readers ignore unknown fields, so newer writers may
add fields. A change that old readers must not ignore gets a new `format`; old readers then stop with a clear error.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, Field, StringConstraints, TypeAdapter, ValidationError

from shared.errors import DamagedBlob
from shared.names import NAME_PATTERN
from shared.prompt.digest import DIGEST_PATTERN
from shared.prompt.manifest import Timestamp
from shared.store.checksum import with_checksum

T = TypeVar("T")

COMMIT_FORMAT = 1
MAX_TARGETS = 8
MAX_WEIGHT = 1_000_000
MAX_SUMMARY_METRICS = 16
MAX_ACTOR_CHARS = 200

Interned = AfterValidator(sys.intern)
Name = Annotated[str, StringConstraints(pattern=rf"^{NAME_PATTERN}$"), Interned]
Digest = Annotated[str, StringConstraints(pattern=f"^{DIGEST_PATTERN}$")]
ReplicaId = Annotated[str, StringConstraints(pattern=r"^[a-z0-9](?:[a-z0-9.-]{0,198}[a-z0-9])?$")]
JobName = Annotated[str, StringConstraints(min_length=1, max_length=200)]
VersionNumber = Annotated[int, Field(ge=1, lt=1_000_000_000)]
InternedText = Annotated[str, StringConstraints(max_length=200), Interned]


@dataclass(frozen=True, slots=True)
class VersionSummary:
    """The facts about a version in the index, which is enough to list, select and refuse it without its blob."""

    base_model: InternedText
    base_model_fingerprint: InternedText
    num_virtual_tokens: int
    hidden_size: int
    parent: Annotated[str, StringConstraints(max_length=200)] = ""
    metrics: Annotated[dict[InternedText, float], Field(max_length=MAX_SUMMARY_METRICS)] = field(default_factory=dict)
    kind: InternedText = "PROMPT"
    """The kind of prefix. A name that this build does not know is a version that this build refuses."""


@dataclass(frozen=True, slots=True)
class AliasTarget:
    """One version that an alias names. Its share of the traffic is its weight over the sum of all weights."""

    version: VersionNumber
    weight: Annotated[int, Field(ge=1, le=MAX_WEIGHT)] = 1


@dataclass(frozen=True, slots=True)
class VersionPublished:
    """A new version. Its number follows the prompt's latest version; its blob is already stored."""

    prompt: Name
    version: VersionNumber
    digest: Digest
    size_bytes: int
    job: JobName
    summary: VersionSummary
    op: Literal["publish"] = "publish"


@dataclass(frozen=True, slots=True)
class AliasMoved:
    """The new targets of an alias; no targets: the alias is removed."""

    prompt: Name
    alias: Name
    targets: Annotated[tuple[AliasTarget, ...], Field(max_length=MAX_TARGETS)]
    op: Literal["alias"] = "alias"


@dataclass(frozen=True, slots=True)
class VersionDeleted:
    """A version is removed from the index. Its number is not used again; its blob is removed later."""

    prompt: Name
    version: VersionNumber
    op: Literal["delete"] = "delete"


Operation = Annotated[VersionPublished | AliasMoved | VersionDeleted, Field(discriminator="op")]


@dataclass(frozen=True, slots=True)
class Commit:
    """One log entry: all `ops` take effect together at `revision`.

    `txid` lets a writer recognise its entry if the acknowledgement was lost.
    """

    revision: Annotated[int, Field(ge=1, lt=10**12)]
    txid: Annotated[str, StringConstraints(min_length=1, max_length=100)]
    time: Timestamp
    actor: Annotated[str, StringConstraints(max_length=MAX_ACTOR_CHARS)]
    """The caller whose request or job made the change, or the part of the service. Shown only to operators."""
    ops: Annotated[tuple[Operation, ...], Field(min_length=1)]
    store: Annotated[str, StringConstraints(max_length=100)] = ""
    """The id of the store that it was written to; empty from earlier builds."""
    format: int = COMMIT_FORMAT


@dataclass(frozen=True, slots=True)
class _Head:
    format: int


_COMMIT = TypeAdapter(Commit)
_HEAD = TypeAdapter(_Head)


def encode_commit(commit: Commit) -> bytes:
    """The entry as JSON, with a checksum."""
    return with_checksum(_COMMIT.dump_json(commit))


def decode_commit(data: bytes, revision: int) -> Commit:
    """The entry from JSON. Raises DamagedBlob if it can't be read, has a newer format, or is not number `revision`."""
    commit = decoded(data, _COMMIT, f"log entry {revision}", COMMIT_FORMAT, revision)
    if commit.revision != revision:
        raise DamagedBlob(f"log entry {revision} contains revision {commit.revision}", revision=revision)
    return commit


def decoded(data: bytes, kind: TypeAdapter[T], name: str, latest_format: int, revision: int) -> T:
    """An object of the log from JSON. Raises DamagedBlob with its name if it can't be read or has a newer format."""
    try:
        if (written := _HEAD.validate_json(data).format) > latest_format:
            raise DamagedBlob(f"{name} has format {written}; this build reads up to {latest_format}: update it")
        return kind.validate_json(data)
    except ValidationError as error:
        raise DamagedBlob(f"{name} can't be read", revision=revision) from error
