"""When a replay agrees with the golden record, and when it doesn't."""

from __future__ import annotations

from inference_service.prompts.golden import disagreement, tolerance_for
from shared.manifest import GoldenRecord

RECORD = GoldenRecord(text="x", input_ids=(1,), top_token_ids=(7, 8, 9), top_logprobs=(-0.1, -2.5, -8.0), dtype="float32")


def test_small_differences_agree() -> None:
    assert disagreement(RECORD, {7: -0.105, 8: -2.49, 9: -7.0, 4: -9.0}, 0.02) == ""


def test_both_numbers_are_told() -> None:
    said = disagreement(RECORD, {7: -0.1, 8: -1.0, 9: -8.0}, 0.02)
    assert "token 8" in said
    assert "-1.0000" in said
    assert "-2.5000" in said


def test_a_token_that_fell_out_of_the_replay_counts_by_the_least_likely_there() -> None:
    assert "below -1.0000" in disagreement(RECORD, {1: -0.5, 2: -1.0}, 0.02)
    assert disagreement(RECORD, {7: -0.1, 3: -2.4, 4: -2.49}, 0.02) == ""  # 8 is just below the last one that was reported
    assert "token 8" in disagreement(RECORD, {7: -0.1, 3: -4.0, 4: -5.0}, 0.02)


def test_the_tail_is_not_compared() -> None:
    assert disagreement(RECORD, {7: -0.1, 8: -2.5, 9: -30.0}, 0.02) == ""


def test_nothing_replayed_is_a_disagreement() -> None:
    assert disagreement(RECORD, {}, 0.02)
    assert disagreement(RECORD, {7: float("nan"), 8: -2.5}, 0.02)


def test_the_coarser_of_two_dtypes_sets_the_tolerance() -> None:
    assert tolerance_for("float32", "bfloat16") == tolerance_for("bfloat16", "float32") > tolerance_for("float32", "float32")
