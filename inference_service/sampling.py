"""The engine's sampling parameters from a request, the version's defaults and the service's."""

from __future__ import annotations

import secrets
from dataclasses import replace

from shared.errors import InvalidInput
from shared.values.sampling import Sampling, SamplingParams

_SEED_BOUND = 1 << 53  # exact in every language's numbers


def resolve(
    request: Sampling, version: Sampling | None, service: Sampling, room: int, max_new_tokens: int
) -> SamplingParams:
    """The request's parameters, then the version's, then the service's.

    `room` is the number of tokens that fit behind the input; an answer has at most that many, and at most
    `max_new_tokens`. Raises InvalidInput if fewer fit than the request's `min_new_tokens`.
    """
    least = request.min_new_tokens or 0
    if least > room:
        raise InvalidInput.of("sampling.min_new_tokens", f"must leave room for the input: at most {room}, is {least}")
    given = request.or_else(version or Sampling()).or_else(service)
    wanted = max(max_new_tokens if given.max_new_tokens is None else given.max_new_tokens, least)
    seed = secrets.randbelow(_SEED_BOUND) if given.seed is None else given.seed
    return replace(given, max_new_tokens=min(wanted, max_new_tokens, room), seed=seed).complete()
