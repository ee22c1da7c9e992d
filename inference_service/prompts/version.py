"""A version as one replica sees it: loaded and ready to serve, or quarantined with a reason."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from shared.prompt.manifest import Manifest, parse_timestamp
from shared.prompt.prefix import Prefix
from shared.store.index import VersionRecord
from shared.text.template import InputEncoder
from shared.values.enums import LoadedState
from shared.values.generation import LoadedPrompt

VersionKey = tuple[str, int]
"""(prompt, version)"""


class RefusalReason(StrEnum):
    """Why a version is refused; a small set of values, since it is a label of a metric."""

    DAMAGED = "damaged"
    """The bytes are invalid, or differ from those that were published."""
    BASE_MODEL = "base_model"
    """Tuned for other weights, another config or another tokenizer."""
    SHAPE = "shape"
    """The prefix does not fit the model."""
    NOT_FINITE = "not_finite"
    """A value overflows in the model's dtype or in its keys and values."""
    TEMPLATE = "template"
    """The template can't be used with this tokenizer."""
    GOLDEN = "golden"
    """The replay of the golden records differs: the prompt has another effect here than where it was trained."""
    FAULT = "fault"
    """Loading failed repeatedly for an unknown reason. A restart of the replica tries again."""


class VersionRefused(Exception):
    """This version will never serve on this replica."""

    def __init__(self, reason: RefusalReason, message: str) -> None:
        super().__init__(message)
        self.reason, self.message = reason, message


@dataclass(frozen=True)
class ServableVersion:
    """A loaded version with all that a request needs. `prefix_id` is its name in the engine."""

    record: VersionRecord
    manifest: Manifest
    prefix: Prefix
    encoder: InputEncoder
    prefix_id: str
    loaded_at: datetime

    @property
    def key(self) -> VersionKey:
        """Prompt and number."""
        return self.record.prompt, self.record.version

    @property
    def num_virtual_tokens(self) -> int:
        """Positions of its prefix."""
        return self.prefix.num_virtual_tokens


@dataclass(frozen=True)
class Quarantine:
    """A version that this replica refused, with the reason."""

    record: VersionRecord
    reason: RefusalReason
    message: str
    refused_at: datetime


@dataclass(frozen=True)
class VersionStatus:
    """One version in `ListLoadedPrompts`. `loaded` is set in state LOADED, `quarantine` in state QUARANTINED."""

    record: VersionRecord
    state: LoadedState
    aliases: tuple[str, ...]
    loaded: ServableVersion | None = None
    quarantine: Quarantine | None = None
    holds: int = 0
    publish_to_served_seconds: float | None = None

    def shown(self, prefix_kv_bytes: int) -> LoadedPrompt:
        """The status for callers. `prefix_kv_bytes`: memory of its keys and values, 0 while they are not loaded."""
        loaded, refused = self.loaded, self.quarantine
        return LoadedPrompt(
            version=self.record.name,
            digest=self.record.digest,
            state=self.state,
            reason="" if refused is None else refused.message,
            aliases=self.aliases,
            num_virtual_tokens=self.record.summary.num_virtual_tokens,
            prefix_kv_bytes=prefix_kv_bytes,
            load_time=loaded.loaded_at if loaded is not None else refused.refused_at if refused is not None else None,
            publish_to_served_seconds=self.publish_to_served_seconds,
            active_requests=self.holds,
            kind=self.record.summary.kind,
        )


def prefix_id_of(record: VersionRecord) -> str:
    """The engine's name for a version: name and digest, so that two contents never share one."""
    return f"{record.name}#{record.digest}"


def prompt_of_prefix(prefix_id: str) -> str:
    """The prompt's name in a prefix id."""
    return prefix_id.split("/", 2)[1]


def version_of_prefix(prefix_id: str) -> int:
    """The version's number in a prefix id."""
    return int(prefix_id.partition("#")[0].rpartition("/")[2])


def publish_to_served_seconds(record: VersionRecord, served_at: datetime) -> float:
    """Seconds from publication to `served_at`; at least 0, since the clocks of two machines may differ."""
    return max(0.0, (served_at - parse_timestamp(record.created_at)).total_seconds())
