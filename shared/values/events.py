"""What happens to a tuning job, besides its changes of state and its progress."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from shared.values.job import TuningJob
from shared.values.results import TuningProgress

_STORED: dict[str, Any] = {"extra": "forbid", "ser_json_inf_nan": "constants"}


@dataclass(frozen=True)
class Evaluation:
    """Held-out metrics after `step` steps; 0: before training."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STORED
    step: int
    metrics: Mapping[str, float]
    is_best: bool


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint after `step` steps was stored."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STORED
    step: int


@dataclass(frozen=True)
class Note:
    """A message for people."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STORED
    text: str


ShownPayload = TuningJob | TuningProgress | Evaluation | Checkpoint | Note
"""What an event of a job says to a caller: a new state, progress, or one of these."""
