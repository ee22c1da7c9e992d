"""Bounds that every request is checked against; `GetModelInfo` reports them."""

from __future__ import annotations

from dataclasses import dataclass

from shared.values.sampling import SamplingLimits

MAX_MESSAGES = 1_000
MAX_ROUTING_KEY_CHARS = 1_024
MAX_PRIORITY = 100
MAX_SHOWN_VIOLATIONS = 16


@dataclass(frozen=True)
class RequestLimits:
    """`sampling` bounds how tokens are chosen; `max_length` counts virtual tokens, input and answer together."""

    sampling: SamplingLimits
    max_input_bytes: int
    max_length: int
    length_limit: str = "this service"
    """What sets `max_length`, for errors."""

    @property
    def max_token_ids(self) -> int:
        """Ids that are looked at, before anything is known of the prompt: no token stands for less than a byte of
        input.
        """
        return self.max_input_bytes
