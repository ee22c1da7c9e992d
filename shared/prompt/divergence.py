"""The divergence between two distributions of the next token."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

FLOAT32_NATS = 1e-5
"""Most divergence of two sound float32 computations: orders of sums differ, and some processors use TF32."""


def divergence_nats(token_ids: Sequence[int], logprobs: Sequence[float], found: Mapping[int, float]) -> float:
    """Kullback-Leibler divergence of `found` from the recorded distribution, in nats, at least 0.

    `logprobs` are the natural logarithms of the recorded tokens' probabilities; `found` maps token ids to theirs. All
    other tokens count as one, so this is a lower bound of the divergence over the whole vocabulary (data processing
    inequality; Cover and Thomas 2006, 2.8). A recorded token missing from `found` gets at most the probability of the
    least likely token in `found`. Infinite if `found` is empty or has values that are not finite.
    """
    if not found or not all(map(math.isfinite, found.values())):
        return math.inf
    floor = min(found.values())
    total, rest, rest_found = 0.0, 1.0, 1.0
    for token, logprob in zip(token_ids, logprobs, strict=True):
        probability, other = math.exp(logprob), found.get(token, min(floor, logprob))
        total += probability * (logprob - other)
        rest -= probability
        rest_found -= math.exp(other)
    if rest > _LEAST:
        total += rest * (math.log(rest) - math.log(max(rest_found, _LEAST)))
    return max(0.0, total)


_LEAST = 1e-6
"""A remaining probability below this is rounding."""


def tied_within(nats: float) -> float:
    """How far rounding may move the difference of two tokens' logits if their distribution may diverge by `nats`.

    Two equally likely tokens diverge by ln cosh(d / 2) if the difference of their logits changes by d.
    """
    return 2 * math.acosh(math.exp(nats))
