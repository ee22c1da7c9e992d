"""What a trainer can train, and how busy it is."""

from __future__ import annotations

from dataclasses import dataclass

from shared.values.base_model import BaseModelInfo
from shared.values.hyperparameters import Hyperparameters


@dataclass(frozen=True)
class TuningLimits:
    """Upper bounds of jobs and datasets."""

    max_virtual_tokens: int
    max_examples: int
    max_dataset_bytes: int
    max_line_bytes: int
    max_queued_jobs: int
    max_runtime_seconds: float | None
    max_positions: int = 0
    """Longest sequence of virtual tokens, input and target; 0: the base model's limit."""


@dataclass(frozen=True)
class UnavailableBaseModel:
    """A configured base model that can't be used now."""

    id: str
    reason: str


@dataclass(frozen=True)
class ServiceInfo:
    """Base models, limits, defaults and load of a trainer."""

    software_version: str
    base_models: tuple[BaseModelInfo, ...]
    limits: TuningLimits | None
    default_hyperparameters: Hyperparameters | None
    queued_jobs: int
    running_jobs: int
    num_workers: int
    unavailable_base_models: tuple[UnavailableBaseModel, ...] = ()
    """Configured models whose files are missing or damaged."""
