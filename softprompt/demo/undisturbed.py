"""Whether a streamed answer is the same as the answer to the same request alone.

The demo serves in float32, where a batch of another size changes logits by about 1e-5. Greedy answers of one version
therefore have the same tokens, unless two tokens are equally likely within rounding. In bfloat16, the difference of two
logits changes by up to 0.5 (SmolLM2-135M, decoded alone and prefilled with others): a limit that tolerates this also
tolerates tokens of another version.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from shared.prompt.divergence import FLOAT32_NATS, tied_within
from shared.values.generation import GenerationDelta

TIE_NATS = tied_within(FLOAT32_NATS)
"""0.009 nats, from the error model of the golden records: rounding in float32 exchanges no tokens farther apart."""


@dataclass(frozen=True)
class Comparison:
    """`account` describes the result, for people."""

    undisturbed: bool
    account: str


def compare(expected: GenerationDelta, token_ids: Sequence[int], frequency_penalty: float = 0.0) -> Comparison:
    """`expected` has log-probabilities with alternatives for each token, before the penalty of both answers."""
    for index, (token, wanted) in enumerate(zip(token_ids, expected.token_ids, strict=False)):
        if token == wanted:
            continue
        place, written = expected.logprobs[index], Counter(token_ids[:index])
        other = next((one.logprob for one in place.alternatives if one.token_id == token), None)
        penalties = frequency_penalty * (written[wanted] - written[token])
        gap = None if other is None else place.logprob - other - penalties
        if gap is not None and abs(gap) <= TIE_NATS:
            return Comparison(
                True, f"the same tokens as without a swap up to token {index}, a tie by rounding ({gap:.4f} nats)"
            )
        far = "no likely alternative" if gap is None else f"{gap:.2f} nats less likely"
        return Comparison(False, f"different tokens from those without a swap, from token {index} on ({far})")
    same_length = len(token_ids) == len(expected.token_ids)
    return Comparison(same_length, f"the same tokens as without a swap ({len(token_ids)} of {len(expected.token_ids)})")
