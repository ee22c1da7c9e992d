"""What a trainer can train, and how busy it is: plain frozen dataclasses. Field names are the protocol's."""

from __future__ import annotations

from dataclasses import dataclass

from softprompt.types.common import BaseModelInfo
from softprompt.types.spec import Hyperparameters


@dataclass(frozen=True)
class TuningLimits:
    max_virtual_tokens: int
    max_examples: int
    max_dataset_bytes: int
    max_line_bytes: int
    max_queued_jobs: int
    max_runtime_seconds: float | None
    max_positions: int = 0
    """Longest sequence of virtual tokens, input and target; 0: what the base model takes."""


@dataclass(frozen=True)
class UnavailableBaseModel:
    """A base model that is configured and can't be used now."""

    id: str
    reason: str


@dataclass(frozen=True)
class ServiceInfo:
    """What a trainer can train, its limits, its defaults, and how busy it is."""

    software_version: str
    base_models: tuple[BaseModelInfo, ...]
    limits: TuningLimits | None
    default_hyperparameters: Hyperparameters | None
    queued_jobs: int
    running_jobs: int
    num_workers: int
    unavailable_base_models: tuple[UnavailableBaseModel, ...] = ()
    """Configured, but their files are missing or broken now."""
