"""Published prompts as a caller sees them, as plain frozen dataclasses. Knows no protobuf."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from softprompt.types.common import BaseModelInfo, Sampling, Template


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
