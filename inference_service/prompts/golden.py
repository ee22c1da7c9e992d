"""The golden replay: proof that a soft prompt does here what it did where it was trained.

The trainer wrote the most likely next tokens of a few inputs (`shared.golden_inputs`), with log-probabilities.
If the prompt were ignored, shifted by a
position, or applied to other weights, these would differ by far more than rounding does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from shared.manifest import GoldenRecord

MIN_PROBABILITY = 0.01
"""Tokens less likely than this are not compared: far out in the tail, rounding alone moves a logarithm a long way."""


FULL_WEIGHT_SHARE = 0.1
"""A token that is at least this likely relative to the most likely one counts fully, a less likely one in proportion: a sharp prompt's
logits are large, and rounding a large logit changes a small probability's logarithm by a lot. Records that hold a text (of earlier
releases) are compared as they always were, all tokens alike."""


@dataclass(frozen=True)
class Tolerance:
    """How far apart record and replay may be.

    `mean` and `worst` are differences of log-probabilities in nats: on average over all compared tokens, and at one of them.
    `mean_variation` and `worst_variation` are total variation distances (0 to 1) over the recorded tokens: on average over the inputs, and
    at one of them.
    """

    mean: float
    worst: float
    mean_variation: float = 1.0
    worst_variation: float = 1.0


_MAX_SHOWN = 16

TOLERANCES = {"float32": Tolerance(0.005, 0.02), "float16": Tolerance(0.05, 0.2), "bfloat16": Tolerance(0.2, 0.75)}
"""By the coarser of the dtypes that recorded and serve. On SmolLM2-135M with prompts of 20 virtual tokens, over six inputs: float32
against bfloat16 0.03 to 0.06 apart on average (0.29 at worst), a prompt with one vector missing 0.22 to 0.72, an ignored one 1.5 to 2.2."""
SYNTHETIC_TOLERANCES = {**TOLERANCES, "bfloat16": Tolerance(0.5, 1.5, 0.1, 0.25)}
"""For records of this program's own inputs. A sharp prompt has logits of 16 and more, which bfloat16 rounds to multiples of 0.125 on each
side, after the rounding of each layer: a sound one came to 0.24 nats on average and 0.78 at worst, at a token of 11 %. How much of the
distribution moves is the better measure there (0.08 of it, in that case); nats catch a wrong prompt where the distribution is flat."""


@dataclass(frozen=True)
class _Difference:
    token: int
    expected: float
    found: float
    """Where the replay did not report the token: the least likely that it reported, which bounds it from above."""
    reported: bool
    weight: float = 1.0

    @property
    def nats(self) -> float:
        if not math.isfinite(self.found):
            return math.inf
        apart = self.weight * abs(self.found - self.expected)
        return apart if self.reported or self.found < self.expected else 0.0

    @property
    def found_text(self) -> str:
        return f"{self.found:.4f}" if self.reported else f"below {self.found:.4f}"

    def __str__(self) -> str:
        return f"token {self.token} has log-probability {self.found_text} here, {self.expected:.4f} where it was trained"


def tolerance_for(records: Sequence[GoldenRecord], serving_dtype: str) -> Tolerance:
    dtypes = {serving_dtype, *(record.dtype for record in records)}
    tolerances = SYNTHETIC_TOLERANCES if all(record.is_synthetic for record in records) else TOLERANCES
    return max((tolerances[dtype] for dtype in dtypes), key=lambda tolerance: tolerance.mean)


def alternatives_for(record: GoldenRecord, limit: int) -> int:
    """How many tokens to ask the engine for, so that a recorded one that slipped a few ranks is still found."""
    return min(limit, 2 * len(record.top_token_ids) + 4)


def disagreement(replays: Sequence[tuple[GoldenRecord, Mapping[int, float]]], tolerance: Tolerance) -> str:
    """What differs beyond `tolerance`, with both numbers, or nothing. A replay maps token ids to log-probabilities."""
    compared = [differences for record, replayed in replays if (differences := _compare(record, replayed))]
    found = [difference for differences in compared for difference in differences]
    if not found:
        return ""
    worst_input = max(compared, key=_worst)
    mean, worst = sum(difference.nats for difference in found) / sum(difference.weight for difference in found), _worst(worst_input)
    variations = [_variation(record, replayed) for record, replayed in replays]
    moved, most_moved = sum(variations) / len(variations), max(variations)
    is_near = worst <= tolerance.worst and mean <= tolerance.mean
    if is_near and moved <= tolerance.mean_variation and most_moved <= tolerance.worst_variation:
        return ""
    return (
        f"{max(worst_input, key=lambda difference: difference.nats)}; over {len(found)} tokens of {len(compared)} inputs they are "
        f"{mean:.4f} apart on average and {worst:.4f} at worst, allowed are {tolerance.mean:g} and {tolerance.worst:g}; "
        f"{moved:.3f} of the probability moved on average and {most_moved:.3f} at worst, "
        f"allowed are {tolerance.mean_variation:g} and {tolerance.worst_variation:g}; "
        f"of the worst input, by token, trained: {_listed(worst_input, 'trained')}; here: {_listed(worst_input, 'here')}"
    )


def _variation(record: GoldenRecord, replayed: Mapping[int, float]) -> float:
    """Total variation distance between record and replay, over the recorded tokens. An unreported one is at most as likely as the least
    likely reported one."""
    floor = min(replayed.values(), default=-math.inf)
    apart = 0.0
    for token, logprob in zip(record.top_token_ids, record.top_logprobs, strict=True):
        expected, found = math.exp(logprob), math.exp(replayed.get(token, floor))
        apart += abs(found - expected) if token in replayed else max(0.0, expected - found)
    return apart / 2 if math.isfinite(apart) else 1.0


def _worst(differences: Sequence[_Difference]) -> float:
    return max(difference.nats for difference in differences)


def _listed(differences: Sequence[_Difference], side: Literal["trained", "here"]) -> str:
    shown = differences[:_MAX_SHOWN]
    return ", ".join(f"{item.token} {f'{item.expected:.4f}' if side == 'trained' else item.found_text}" for item in shown)


def _compare(record: GoldenRecord, replayed: Mapping[int, float]) -> list[_Difference]:
    floor, full = min(replayed.values(), default=math.nan), record.top_logprobs[0] + math.log(FULL_WEIGHT_SHARE)
    return [
        _Difference(
            token,
            expected,
            replayed.get(token, floor),
            token in replayed,
            min(1.0, math.exp(expected - full)) if record.is_synthetic else 1.0,
        )
        for rank, (token, expected) in enumerate(zip(record.top_token_ids, record.top_logprobs, strict=True))
        if rank == 0 or expected >= math.log(MIN_PROBABILITY)
    ]
