"""Counts of a job's examples."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class DatasetStatistics(BaseModel):
    """Counts of a job's encoded examples. Lengths are in tokens, without virtual tokens."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_train: int
    num_validation: int
    num_dropped: int = 0
    """Examples left out because they are too long."""
    num_truncated: int = 0
    """Examples whose inputs were cut because they are too long."""
    num_overlapping: int = 0
    """Held-out examples whose input is also in the training part; they make the score too good."""
    mean_input_tokens: float = 0.0
    max_input_tokens: int = 0
    mean_target_tokens: float = 0.0
    max_target_tokens: int = 0
