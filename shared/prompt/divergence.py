"""How far apart two views of the next token are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence


def divergence_nats(token_ids: Sequence[int], logprobs: Sequence[float], found: Mapping[int, float]) -> float:
    """Kullback-Leibler divergence of `found` from what was recorded, in nats, at least 0; infinite if nothing can be
    said.

    `logprobs` (natural logarithms) are of the recorded tokens; `found` maps token ids to theirs. All other tokens count
    as one, so this is a lower bound of the divergence over the whole vocabulary (data processing inequality; Cover and
    Thomas 2006, 2.8). A recorded token that is not in `found` is at most as likely there as the least likely one that
    is.
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
"""Below this, what is left of 1 is rounding."""
