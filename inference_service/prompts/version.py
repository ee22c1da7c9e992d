"""A version as one replica sees it: loaded and ready to serve, or quarantined with a reason."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

from shared.prompt.manifest import Manifest, parse_timestamp
from shared.prompt.soft_prompt import SoftPrompt
from shared.store.index import VersionRecord
from shared.text.template import InputEncoder

VersionKey = tuple[str, int]
"""(prompt, version)"""


class RefusalReason(StrEnum):
    """Why a version is refused, in as few values as a metric's label may have."""

    DAMAGED = "damaged"
    """The bytes are not a sound version, or not those that were published."""
    BASE_MODEL = "base_model"
    """Tuned for other weights, another config or another tokenizer."""
    SHAPE = "shape"
    """The matrix does not fit the model."""
    NOT_FINITE = "not_finite"
    """A value overflows in the model's dtype or in its keys and values."""
    TEMPLATE = "template"
    """The template can't be used with this tokenizer."""
    GOLDEN = "golden"
    """The replay of the golden record disagrees: the prompt does not do here what it did where it was trained."""
    FAULT = "fault"
    """Loading it failed again and again for no reason outside the version. A restart of the replica tries it again."""


class VersionRefused(Exception):
    """This version will never serve on this replica."""

    def __init__(self, reason: RefusalReason, message: str) -> None:
        super().__init__(message)
        self.reason, self.message = reason, message


@dataclass(frozen=True)
class LoadedVersion:
    """Everything that serving a request needs to know of a version. `prefix_id` is its name in the engine."""

    record: VersionRecord
    manifest: Manifest
    soft_prompt: SoftPrompt
    encoder: InputEncoder
    prefix_id: str
    loaded_at: datetime

    @property
    def key(self) -> VersionKey:
        return self.record.prompt, self.record.version

    @property
    def num_virtual_tokens(self) -> int:
        return self.soft_prompt.num_virtual_tokens


@dataclass(frozen=True)
class Quarantine:
    """A refused version; `digest` tells it from another that may come under the same number in another store."""

    record: VersionRecord
    reason: RefusalReason
    message: str
    refused_at: datetime


def prefix_id_of(record: VersionRecord) -> str:
    """Name and digest: the engine never confuses two contents under one name."""
    return f"{record.name}#{record.digest}"


def prompt_of_prefix(prefix_id: str) -> str:
    """The prompt's name in a prefix id."""
    return prefix_id.split("/", 2)[1]


def publish_to_served_seconds(record: VersionRecord, served_at: datetime) -> float:
    """From the commit's time to now; clocks of two machines may differ, so never below zero."""
    return max(0.0, (served_at - parse_timestamp(record.created_at)).total_seconds())


def now() -> datetime:
    return datetime.now(UTC)


def to_timestamp(time: datetime) -> str:
    """As the store's records write times."""
    return time.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
