"""Whether a streamed answer is the same as the answer to the same request alone.

Greedy answers of one version differ only by rounding: a batch of another size sums in another order, and in bfloat16
two tokens of equal probability may change places. A difference at such a tie is rounding; any other one means that the
stream was disturbed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from softprompt.types.generation import GenerationDelta

TIE_NATS = 0.5
"""A bfloat16 logit near 20 has steps of 0.125, and rounding in the layers moves two logits by a few such steps."""


@dataclass(frozen=True)
class Comparison:
    """`account` describes the result, for people."""

    undisturbed: bool
    account: str


def compare(expected: GenerationDelta, token_ids: Sequence[int]) -> Comparison:
    """`expected` has log-probabilities with at least two alternatives for each token."""
    for index, (token, wanted) in enumerate(zip(token_ids, expected.token_ids, strict=False)):
        if token == wanted:
            continue
        place = expected.logprobs[index]
        gap = next((place.logprob - other.logprob for other in place.alternatives if other.token_id == token), None)
        if gap is not None and gap <= TIE_NATS:
            return Comparison(
                True, f"the same tokens as without a swap up to token {index}, a tie by rounding ({gap:.2f} nats)"
            )
        far = "no likely alternative" if gap is None else f"{gap:.2f} nats less likely"
        return Comparison(False, f"different tokens from those without a swap, from token {index} on ({far})")
    same_length = len(token_ids) == len(expected.token_ids)
    return Comparison(same_length, f"the same tokens as without a swap ({len(token_ids)} of {len(expected.token_ids)})")
