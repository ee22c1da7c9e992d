"""What a request leaves out of its sampling is taken from the version's defaults, then from the service's."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import TypeVar

from inference_service.engine.core.request import SamplingParams
from shared.errors import InvalidInput
from shared.prompt.manifest import SamplingDefaults

Number = TypeVar("Number", int, float)
_SEED_BOUND = 1 << 53  # exact in every language's numbers


@dataclass(frozen=True)
class SamplingRequest:
    """What a caller said; None is left out."""

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    stop_sequences: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    max_new_tokens: int | None = None
    min_new_tokens: int = 0
    ignore_eos: bool = False
    num_logprobs: int | None = None
    """Alternatives beside each token; 0 is the token alone, None no log-probabilities at all."""

    def resolve(
        self, version: SamplingDefaults | None, service: SamplingDefaults, room: int, max_new_tokens: int
    ) -> SamplingParams:
        """Request over version over service. `room` is how many tokens still fit behind the input: an answer ends there
        at the latest.

        Raises InvalidInput if fewer fit than the request wants at least.
        """
        defaults = version or SamplingDefaults()
        if self.min_new_tokens > room:
            raise InvalidInput.of(
                "sampling.min_new_tokens", f"must leave room for the input: at most {room}, is {self.min_new_tokens}"
            )
        wanted = _first(self.max_new_tokens, defaults.max_new_tokens, service.max_new_tokens, max_new_tokens)
        bound = min(max(wanted, self.min_new_tokens), max_new_tokens, room)
        return SamplingParams(
            temperature=_first(self.temperature, defaults.temperature, service.temperature, 0.0),
            top_k=_first(self.top_k, defaults.top_k, service.top_k, 0),
            top_p=_first(self.top_p, defaults.top_p, service.top_p, 1.0),
            min_p=_first(self.min_p, defaults.min_p, service.min_p, 0.0),
            repetition_penalty=_first(
                self.repetition_penalty, defaults.repetition_penalty, service.repetition_penalty, 1.0
            ),
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            seed=secrets.randbelow(_SEED_BOUND) if self.seed is None else self.seed,
            stop_sequences=self.stop_sequences or defaults.stop or service.stop,
            stop_token_ids=frozenset(self.stop_token_ids),
            ignore_eos=self.ignore_eos,
            max_new_tokens=bound,
            min_new_tokens=self.min_new_tokens,
            num_logprobs=self.num_logprobs,
        )


def _first(*values: Number | None) -> Number:
    return next(value for value in values if value is not None)
