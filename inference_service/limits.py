"""Limits of every request; `GetModelInfo` reports them."""

from __future__ import annotations

from dataclasses import dataclass

from shared.values.sampling import SamplingLimits

MAX_MESSAGES = 1_000
MAX_ROUTING_KEY_CHARS = 1_024
MAX_PRIORITY = 100
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
