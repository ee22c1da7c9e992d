"""Published prompts as a caller sees them, as plain frozen dataclasses. Knows no protobuf."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from softprompt.types.common import BaseModelInfo, Comparison, Sampling, Template


@dataclass(frozen=True)
class AliasTarget:
    version: int
    weight: float = 1.0
    """Share of traffic, relative to the other targets' weights."""


@dataclass(frozen=True)
class Alias:
    name: str
    targets: tuple[AliasTarget, ...]
    revision: int
    """Store revision at which it last moved."""


@dataclass(frozen=True)
class Prompt:
    name: str
    """ "prompts/{prompt}"."""
    latest_version: int
    num_versions: int
    aliases: tuple[Alias, ...]
    update_time: datetime | None


@dataclass(frozen=True)
class PromptVersion:
    name: str
    """ "prompts/{prompt}/versions/{n}"."""
    digest: str
    size_bytes: int
    create_time: datetime | None
    job: str
    base_model: BaseModelInfo | None
    num_virtual_tokens: int
    template: Template | None
    labels: tuple[str, ...]
    metrics: Mapping[str, float]
    sampling_defaults: Sampling | None
    recipe: Mapping[str, Any]
    parent: str
    revision: int
    aliases: tuple[str, ...]
    gate: str
    """Why its gate let it be published, with the numbers."""
    comparisons: tuple[Comparison, ...] = ()
    """The prompt beside other ways to use the base model."""
    verdict: str = ""
    """Which of them it beats, and which it doesn't."""


@dataclass(frozen=True)
class ReplicaServing:
    """A version on a replica that serves it; `publish_to_served_seconds` is None if the version is older than the replica."""

    replica: str
    load_time: datetime | None
    publish_to_served_seconds: float | None


@dataclass(frozen=True)
class ReplicaRefusal:
    """`has_base_model`: it has the version's base model, so it should have served it."""

    replica: str
    reason: str
    has_base_model: bool


@dataclass(frozen=True)
class VersionStatus:
    """One version across the fleet; `num_replicas` counts the live replicas of its base model."""

    version: str
    aliases: tuple[str, ...]
    num_replicas: int
    served: tuple[ReplicaServing, ...]
    refused: tuple[ReplicaRefusal, ...]
    served_by_all: bool


@dataclass(frozen=True)
class ReplicaStatus:
    id: str
    base_model: str
    base_model_fingerprint: str
    revision: int
    start_time: datetime | None
    update_time: datetime | None


@dataclass(frozen=True)
class PromptStatus:
    """Where the versions of a prompt are served (newest first), and every replica that is alive, of any base model."""

    versions: tuple[VersionStatus, ...]
    replicas: tuple[ReplicaStatus, ...]
    revision: int


@dataclass(frozen=True)
class PromptChange:
    """One change of the store. `revision` and `store_id` together are where to go on watching."""

    revision: int
    store_id: str


@dataclass(frozen=True)
class Snapshot(PromptChange):
    """Everything as it is: forget what was known before. At the start, and when the log no longer reaches back, or is another store's."""

    prompts: tuple[Prompt, ...]


@dataclass(frozen=True)
class Published(PromptChange):
    version: PromptVersion


@dataclass(frozen=True)
class AliasSet(PromptChange):
    """`alias` without targets: it was removed."""

    prompt: str
    alias: Alias


@dataclass(frozen=True)
class Deleted(PromptChange):
    version: str
    """ "prompts/{prompt}/versions/{n}"."""
