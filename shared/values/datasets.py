"""Datasets that the trainer stores."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from shared.values.enums import TaskKind

MAX_LINE_BYTES = 1 << 20
"""Longest line of a dataset, unless the trainer has another setting."""
MAX_LABELS = 1000
"""Different labels of a prompt."""


@dataclass(frozen=True)
class UploadedDataset:
    """`dataset` is the name, "datasets/sha256-<hex>", which depends on the bytes alone."""

    dataset: str
    num_examples: int
    task: TaskKind | None
    labels: tuple[str, ...]


@dataclass(frozen=True)
class StoredDataset:
    """A dataset of the caller's tenant. `num_jobs` counts the tenant's jobs that use it, including ended ones."""

    name: str
    size_bytes: int
    num_examples: int
    """0 if the service has not counted them yet, after an upgrade."""
    task: TaskKind | None
    num_labels: int
    create_time: datetime | None
    last_use_time: datetime | None
    """Time of the last upload, or of the last new job that uses it."""
    num_jobs: int
    labels: tuple[str, ...] = ()
    """The labels that occur; only `get_dataset` fills them in."""
    file_name: str = ""
    """Name of the file in the last upload that gave one; else empty."""
