"""When a replay agrees with the golden record, and when it doesn't."""

from __future__ import annotations

import math

import pytest

from inference_service.prompts.golden import BAND, FLOORS, MOST, UNKNOWN, Replay, allowed_nats, disagreement
from shared.prompt.manifest import GoldenRecord

RECORD = GoldenRecord(
    text="",
    input_ids=(1,),
    top_token_ids=(7, 8, 9),
    top_logprobs=(-0.1, -2.5, -8.0),
    dtype="bfloat16",
    rounding_nats=0.002,
)


def judge(found: dict[int, float], allowed: float = 0.01) -> str:
    return disagreement([Replay(RECORD, found)], allowed)


def test_small_differences_agree() -> None:
    assert judge({7: -0.101, 8: -2.495, 9: -7.0, 4: -9.0}) == ""


def test_what_is_unlikely_counts_little() -> None:
    """A token of 1 % that lost two thirds of its probability: rounding does that to a sharp prompt."""
    sharp = RECORD.model_copy(update={"top_logprobs": (math.log(0.98), math.log(0.01), math.log(0.002))})
    assert disagreement([Replay(sharp, {7: math.log(0.985), 8: math.log(0.004), 9: math.log(0.002)})], 0.01) == ""


def test_both_sides_numbers_are_in_the_reason() -> None:
    said = judge({7: -0.4, 8: -1.2, 9: -8.0})
    assert "trained: 7 -0.1000, 8 -2.5000, 9 -8.0000; here: 7 -0.4000, 8 -1.2000" in said
    assert "nats apart on average, allowed are 0.01" in said


def test_a_token_that_fell_out_of_the_replay_is_at_most_as_likely_as_the_last_one_there() -> None:
    assert "7 below -2.5000" in judge({1: -0.5, 8: -2.5})
    assert judge({7: -0.1, 8: -2.5, 3: -3.5}) == "", "9 may be as likely as it was"


def test_one_input_that_is_far_off_is_enough() -> None:
    same = Replay(RECORD, {7: -0.1, 8: -2.5, 9: -8.0})
    assert disagreement([same] * 4, 0.01) == ""
    assert disagreement([*[same] * 4, Replay(RECORD, {7: -1.0, 8: -0.5, 9: -8.0})], 0.01)


def test_nothing_replayed_is_a_disagreement_and_nothing_recorded_is_none() -> None:
    assert judge({})
    assert judge({7: float("nan"), 8: -2.5})
    assert disagreement([], 0.01) == ""


@pytest.mark.parametrize(
    ("trained", "serving", "rounding", "allowed"),
    [
        ("float32", "float32", 0.5, FLOORS["float32"]),
        ("float32", "bfloat16", 0.004, 0.004 * BAND),
        ("bfloat16", "float32", 0.004, 0.004 * BAND),
        ("bfloat16", "bfloat16", 1e-6, FLOORS["bfloat16"]),
        ("float16", "float16", 0.016, 0.001 * BAND),
        ("float32", "bfloat16", 50.0, MOST),
        ("float32", "float32", None, UNKNOWN["float32"]),
        ("float32", "bfloat16", None, UNKNOWN["bfloat16"]),
    ],
)
def test_what_is_allowed_follows_from_the_dtypes_and_what_rounding_did_to_this_prompt(
    trained: str, serving: str, rounding: float | None, allowed: float
) -> None:
    record = RECORD.model_copy(update={"dtype": trained, "rounding_nats": rounding})
    assert allowed_nats([record, record], serving) == pytest.approx(allowed)
