"""Limits of every request; `GetModelInfo` reports them."""

from __future__ import annotations

from dataclasses import dataclass, fields

from shared.values.generation import GenerationLimits
from shared.values.sampling import SamplingLimits

MAX_MESSAGES = 1_000
MAX_ROUTING_KEY_CHARS = 1_024
MAX_MODEL_CHARS = 200
MAX_SHOWN_VIOLATIONS = 16


@dataclass(frozen=True)
class RequestLimits:
    """Limits of one request; `max_length` counts virtual tokens, input and answer together."""

    sampling: SamplingLimits
    max_input_bytes: int
    max_length: int
    length_limit: str = "this service"
    """The origin of `max_length` for error texts."""

    @property
    def max_token_ids(self) -> int:
        """Maximum number of token ids, before the prompt is known: every token takes at least one byte of input."""
        return self.max_input_bytes

    def shown(self, max_running: int, max_waiting: int) -> GenerationLimits:
        """The limits for callers, with those of the engine."""
        given = {**vars(self.sampling), "max_positions": self.max_length, "max_input_bytes": self.max_input_bytes}
        names = {field.name for field in fields(GenerationLimits)}
        shown = {name: value for name, value in given.items() if name in names}
        return GenerationLimits(**shown, max_running=max_running, max_waiting=max_waiting)
