"""Telling a rounding tie from a stream that was disturbed."""

from __future__ import annotations

import pytest

from softprompt.demo.undisturbed import compare
from softprompt.types.generation import GenerationDelta, TokenAlternative, TokenLogprob


def expected() -> GenerationDelta:
    """Tokens 10, 11, 12; at the second place token 21 is nearly as probable, token 31 is not."""
    alternatives = (TokenAlternative(11, -0.8), TokenAlternative(21, -0.9), TokenAlternative(31, -4.0))
    places = (TokenLogprob(10, -0.1, ()), TokenLogprob(11, -0.8, alternatives), TokenLogprob(12, -0.1, ()))
    return GenerationDelta("", (10, 11, 12), places)


@pytest.mark.parametrize(
    ("tokens", "undisturbed", "account"),
    [
        ([10, 11, 12], True, "the same tokens as without a swap ("),
        ([10, 21, 99], True, "up to token 1, a tie by rounding (0.10 nats)"),
        ([10, 31, 12], False, "from token 1 on (3.20 nats less likely)"),
        ([10, 77, 12], False, "from token 1 on (no likely alternative)"),
        ([10, 11], False, "(2 of 3)"),
    ],
)
def test_departures(tokens: list[int], undisturbed: bool, account: str) -> None:
    comparison = compare(expected(), tokens)
    assert comparison.undisturbed is undisturbed
    assert account in comparison.account
