"""When a replay agrees with the golden record, and when it doesn't."""

from __future__ import annotations

from inference_service.prompts.golden import TOLERANCES, Tolerance, disagreement, tolerance_for
from shared.manifest import GoldenRecord

RECORD = GoldenRecord(text="x", input_ids=(1,), top_token_ids=(7, 8, 9), top_logprobs=(-0.1, -2.5, -8.0), dtype="float32")
STRICT = Tolerance(mean=0.005, worst=0.02)


def judge(replayed: dict[int, float], tolerance: Tolerance = STRICT) -> str:
    return disagreement([(RECORD, replayed)], tolerance)


def test_small_differences_agree() -> None:
    assert judge({7: -0.101, 8: -2.495, 9: -7.0, 4: -9.0}) == ""


def test_both_numbers_are_told() -> None:
    said = judge({7: -0.1, 8: -1.0, 9: -8.0})
    assert "token 8 has log-probability -1.0000 here, -2.5000 where it was trained" in said


def test_many_small_differences_add_up() -> None:
    assert judge({7: -0.115, 8: -2.515}, Tolerance(mean=0.02, worst=0.02)) == ""
    assert "0.0150 apart on average" in judge({7: -0.115, 8: -2.515}, Tolerance(mean=0.01, worst=0.02))


def test_a_token_that_fell_out_of_the_replay_is_at_most_as_likely_as_the_last_one_there() -> None:
    assert "token 7 has log-probability below -2.5000 here" in judge({1: -0.5, 8: -2.5})
    assert judge({7: -0.1, 3: -2.4, 4: -2.45}) == ""
    assert "token 8" in judge({7: -0.1, 3: -4.0, 4: -5.0})


def test_the_tail_is_not_compared() -> None:
    assert judge({7: -0.1, 8: -2.5, 9: -30.0}) == ""


def test_nothing_replayed_is_a_disagreement_and_nothing_recorded_is_none() -> None:
    assert judge({})
    assert judge({7: float("nan"), 8: -2.5})
    assert disagreement([], STRICT) == ""


def test_the_coarsest_dtype_sets_the_tolerance() -> None:
    assert tolerance_for([RECORD], "bfloat16") is TOLERANCES["bfloat16"]
    assert tolerance_for([RECORD], "float32") is TOLERANCES["float32"]
    assert tolerance_for([RECORD.model_copy(update={"dtype": "bfloat16"})], "float32") is TOLERANCES["bfloat16"]
