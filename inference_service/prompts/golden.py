"""The golden replay: proof that a soft prompt does here what it did where it was trained.

The trainer wrote the most likely next tokens of a few held-out inputs, with log-probabilities. If the prompt were ignored, shifted by a
position, or applied to other weights, these would differ by far more than rounding does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from shared.manifest import GoldenRecord

TOLERANCES = {"float32": 0.02, "bfloat16": 0.35, "float16": 0.15}
"""Largest difference of a log-probability, in nats, by the coarser of the two dtypes. See `docs/prompts.md` for how they were measured."""

MIN_PROBABILITY = 0.01
"""Tokens less likely than this are not compared: far out in the tail, rounding alone moves a logarithm a long way."""


def tolerance_for(recorded_dtype: str, serving_dtype: str) -> float:
    return max(TOLERANCES[recorded_dtype], TOLERANCES[serving_dtype])


def alternatives_for(record: GoldenRecord, limit: int) -> int:
    """How many tokens to ask the engine for, so that a recorded one that slipped a few ranks is still found."""
    return min(limit, 2 * len(record.top_token_ids) + 4)


def disagreement(record: GoldenRecord, replayed: Mapping[int, float], tolerance: float) -> str:
    """What differs beyond `tolerance`, with both numbers, or nothing. `replayed` maps token ids to log-probabilities."""
    floor = min(replayed.values(), default=-math.inf)
    compared = [
        (token, expected)
        for rank, (token, expected) in enumerate(zip(record.top_token_ids, record.top_logprobs, strict=True))
        if rank == 0 or expected >= math.log(MIN_PROBABILITY)
    ]
    for token, expected in compared:
        # A token that is not among the replayed ones is at most as likely as the least of them.
        found = replayed.get(token, floor)
        if not math.isfinite(found) or (abs(found - expected) > tolerance and not (token not in replayed and found > expected)):
            here = f"{found:.4f}" if token in replayed else f"below {found:.4f}"
            return f"token {token} has log-probability {here} here, {expected:.4f} where it was trained (tolerance {tolerance:g})"
    return ""
