"""Published prompts, their versions and aliases, where they are served, and changes of the store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from shared.values.base_model import BaseModelInfo
from shared.values.results import Comparison
from shared.values.sampling import Sampling
from shared.values.template import Template


@dataclass(frozen=True)
class AliasTarget:
    """A version that an alias names."""

    version: int
    weight: float = 1.0
    """Share of the traffic, relative to the weights of the other targets."""


@dataclass(frozen=True)
class Alias:
    """A movable name of one version or several."""

    name: str
    targets: tuple[AliasTarget, ...]
    revision: int
    """Store revision of its last move."""


@dataclass(frozen=True)
class Prompt:
    """A named prompt."""

    name: str
    """ "prompts/{prompt}"."""
    latest_version: int
    num_versions: int
    aliases: tuple[Alias, ...]
    update_time: datetime | None


@dataclass(frozen=True)
class PromptVersion:
    """An immutable version of a prompt."""

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
    """Why its gate allowed the publication, with the numbers."""
    comparisons: tuple[Comparison, ...] = ()
    """The prompt compared with other uses of the base model."""
    verdict: str = ""
    """Which of these it beats and which it does not beat."""
    kind: str = ""
    """ "PROMPT": a soft prompt; "PREFIX": keys and values of each layer. Empty from earlier servers."""


@dataclass(frozen=True)
class ReplicaServing:
    """A replica that serves a version. `publish_to_served_seconds` is None if the version is older than the replica."""

    replica: str
    load_time: datetime | None
    publish_to_served_seconds: float | None


@dataclass(frozen=True)
class ReplicaRefusal:
    """A replica that refused a version. `has_base_model`: it has the version's base model, so it should serve it."""

    replica: str
    reason: str
    has_base_model: bool


@dataclass(frozen=True)
class VersionStatus:
    """One version on all replicas. `num_replicas` counts the live replicas of its base model."""

    version: str
    aliases: tuple[str, ...]
    num_replicas: int
    served: tuple[ReplicaServing, ...]
    refused: tuple[ReplicaRefusal, ...]
    served_by_all: bool
    kind: str = ""
    """As in PromptVersion."""


@dataclass(frozen=True)
class ReplicaStatus:
    """A live replica, by its last report."""

    id: str
    base_model: str
    base_model_fingerprint: str
    revision: int
    start_time: datetime | None
    update_time: datetime | None


@dataclass(frozen=True)
class PromptStatus:
    """Where each version of a prompt is served, newest first, and all live replicas of any base model."""

    versions: tuple[VersionStatus, ...]
    replicas: tuple[ReplicaStatus, ...]
    revision: int


@dataclass(frozen=True)
class PromptChange:
    """One change of the store. `revision` and `store_id` together are the position from which to continue a watch."""

    revision: int
    store_id: str


@dataclass(frozen=True)
class Snapshot(PromptChange):
    """The whole state, replacing any earlier one: at the start, or if the log is too short or of another store."""

    prompts: tuple[Prompt, ...]


@dataclass(frozen=True)
class Published(PromptChange):
    """A new version."""

    version: PromptVersion


@dataclass(frozen=True)
class AliasSet(PromptChange):
    """An alias has moved. An alias without targets has been removed."""

    prompt: str
    alias: Alias


@dataclass(frozen=True)
class Deleted(PromptChange):
    """A version was deleted."""

    version: str
    """ "prompts/{prompt}/versions/{n}"."""
