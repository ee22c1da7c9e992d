"""The golden replay: checks that a soft prompt has the same effect here as where it was trained.

The trainer recorded the most likely next tokens of a few inputs (`shared.text.golden_inputs`), their log-probabilities,
and how far bfloat16 changed them there. If the prompt is ignored, shifted by a position, or applied to other weights,
these numbers change by far more than rounding does.

The error model: a computation in 16 bits differs from the exact one by many small roundings, so logits get errors that
are close to normal, of a size that depends on the model and on the prompt. The divergence over the recorded tokens is
then near a weighted sum of squares of those errors. Two such computations, the trainer's and a replica's, have errors
of the same size, but not the same errors: their divergences are two draws from one distribution, whose ratio has a tail
like that of an F distribution with a few degrees of freedom. With `BAND`, less than one sound prompt in 10,000 is
refused according to `make bench-golden`; docs/prompts.md shows an example of a refusal.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from shared.prompt.divergence import FLOAT32_NATS, divergence_nats
from shared.prompt.manifest import GoldenRecord

BAND = 12.0
"""Maximum of a replica's divergence as a multiple of the trainer's own."""
FLOORS = {"float32": FLOAT32_NATS, "float16": 1e-3, "bfloat16": 0.01}
"""Nats that are always allowed, by the coarsest dtype involved."""
_FLOAT16_SHARE = 1 / 16
"""Part of bfloat16's divergence to expect in float16.

Three more bits reduce errors to an eighth, and squared errors to 1/64; the rest is margin.
"""
UNKNOWN = {"float32": FLOORS["float32"], "float16": 0.02, "bfloat16": 0.1}
"""Nats allowed for records without `rounding_nats`.

These are records of earlier releases, and of models that can't be computed in another dtype.
"""
MOST = 1.0
"""Maximum of allowed nats: a prompt that rounding changes more can't be served in 16 bits."""
_MAX_SHOWN = 16


@dataclass(frozen=True)
class Replay:
    """A golden record and its replay. `found` maps more token ids than were recorded to log-probabilities."""

    record: GoldenRecord
    found: Mapping[int, float]

    @property
    def nats(self) -> float:
        """Divergence of the replay from the record."""
        return divergence_nats(self.record.top_token_ids, self.record.top_logprobs, self.found)


def allowed_nats(records: Sequence[GoldenRecord], serving_dtype: str) -> float:
    """The allowed divergence of replays from these records, in nats, averaged over the inputs."""
    dtype = max({serving_dtype, *(record.dtype for record in records)}, key=lambda name: FLOORS[name])
    known = [record.rounding_nats for record in records if record.rounding_nats is not None]
    if len(known) < len(records):
        return UNKNOWN[dtype]
    if dtype == "float32":
        return FLOORS[dtype]
    share = _FLOAT16_SHARE if dtype == "float16" else 1.0
    return min(MOST, max(FLOORS[dtype], BAND * share * sum(known) / max(1, len(known))))


def alternatives_for(record: GoldenRecord, limit: int) -> int:
    """Number of tokens to request from the engine, so that a recorded token that fell a few ranks is still found."""
    return min(limit, 2 * len(record.top_token_ids) + 4)


def disagreement(replays: Sequence[Replay], allowed: float) -> str:
    """Describes the difference, with the numbers of both sides, if the mean exceeds `allowed` nats; else empty."""
    if not replays:
        return ""
    mean = sum(replay.nats for replay in replays) / len(replays)
    if mean <= allowed:
        return ""
    worst = max(replays, key=lambda replay: replay.nats)
    return (
        f"over {len(replays)} inputs the answers are {mean:.4g} nats apart on average, allowed are {allowed:.4g}; "
        f"of the worst input ({worst.nats:.4g}), by token, trained: {_trained(worst)}; here: {_here(worst)}"
    )


def _trained(replay: Replay) -> str:
    pairs = zip(replay.record.top_token_ids, replay.record.top_logprobs, strict=True)
    return ", ".join(f"{token} {logprob:.4f}" for token, logprob in list(pairs)[:_MAX_SHOWN])


def _here(replay: Replay) -> str:
    floor = min(replay.found.values(), default=math.nan)
    tokens = replay.record.top_token_ids[:_MAX_SHOWN]
    return ", ".join(
        f"{token} {replay.found[token]:.4f}" if token in replay.found else f"{token} below {floor:.4f}"
        for token in tokens
    )
