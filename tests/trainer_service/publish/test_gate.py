"""The publishing gate: each condition, metrics where higher or lower is better, intervals, and missing numbers."""

from __future__ import annotations

import pytest

from shared.errors import InvalidInput
from shared.values.spec import PublishGate
from trainer_service.jobs.admission import check_gate
from trainer_service.jobs.comparisons import verdict
from trainer_service.publish.gate import Evidence, decide
from trainer_service.training.comparison import BARE, CURRENT, INSTRUCTED, Comparison, Estimate
from trainer_service.training.data.encoding import EncodedDataset, EncodedExample
from trainer_service.training.data.held_out import parted
from trainer_service.training.spec import Example, Metric


def evidence(
    metric: Metric = Metric.LOSS,
    value: float = 1.0,
    other: float = 2.0,
    margin: float = 0.1,
    count: int = 40,
    rival: str = BARE,
) -> Evidence:
    """A tuned prompt's value beside a rival's."""
    difference = (other - value) if metric is Metric.LOSS else (value - other)
    comparison = Comparison(metric, value, other, difference, difference - margin, difference + margin, count)
    estimate = Estimate(metric, value, value - margin, value + margin, count)
    return Evidence(estimate, {rival: comparison}, has_current=rival == CURRENT)


BEAT_BARE, BEAT_CURRENT = PublishGate(beat_bare_model=True), PublishGate(beat_current=True)


@pytest.mark.parametrize(
    ("gate", "metric", "known", "publish", "reason"),
    [
        (None, Metric.LOSS, Evidence(), True, "no gate"),
        (PublishGate(), Metric.LOSS, Evidence(), True, "no conditions"),
        (
            BEAT_BARE,
            Metric.LOSS,
            evidence(),
            True,
            "loss 1 beats 2 of the bare model: better by 1 (95 % interval 0.9 to 1.1, 40 held-out",
        ),
        (BEAT_BARE, Metric.LOSS, evidence(value=2.0), False, "does not beat 2 of the bare model"),
        (
            BEAT_BARE,
            Metric.LOSS,
            evidence(value=1.95),
            False,
            "does not beat 2 of the bare model beyond chance: better by 0.05",
        ),
        (BEAT_BARE, Metric.LOSS, evidence(value=2.5), False, "worse by 0.5"),
        (BEAT_BARE, Metric.ACCURACY, evidence(Metric.ACCURACY, 0.9, 0.5), True, "accuracy 0.9 beats"),
        (BEAT_BARE, Metric.ACCURACY, evidence(Metric.ACCURACY, 0.9, 0.85), False, "beyond chance"),
        (
            BEAT_BARE,
            Metric.ACCURACY,
            Evidence(evidence(Metric.ACCURACY).estimate),
            False,
            "accuracy of the bare model was not measured",
        ),
        (
            BEAT_CURRENT,
            Metric.CHRF,
            evidence(Metric.CHRF, 60, 61, rival=CURRENT),
            False,
            "does not beat 61 of the current version",
        ),
        (BEAT_CURRENT, Metric.CHRF, evidence(Metric.CHRF, 60, 61), True, "there is no current version"),
        (
            PublishGate(minimum_metric=1.0),
            Metric.LOSS,
            evidence(),
            True,
            "loss 1 (95 % interval 0.9 to 1.1, 40 held-out examples) is at mo",
        ),
        (PublishGate(minimum_metric=0.5), Metric.LOSS, evidence(value=0.6), False, "is above 0.5"),
        (
            PublishGate(minimum_metric=0.7),
            Metric.LOSS,
            evidence(value=0.65, margin=0.2),
            True,
            "0.45 to 0.85, 40 held-out examples) is at most",
        ),
        (PublishGate(minimum_metric=0.7), Metric.CHRF, evidence(Metric.CHRF, 0.65, margin=0.2), False, "is below 0.7"),
        (PublishGate(minimum_metric=0.5), Metric.MACRO_F1, evidence(Metric.MACRO_F1, 0.4), False, "is below 0.5"),
        (PublishGate(minimum_metric=0.5), Metric.LOSS, Evidence(), False, "was not measured"),
        (PublishGate(minimum_metric=0.9, beat_bare_model=True), Metric.LOSS, evidence(), False, "above 0.9"),
        (
            BEAT_BARE,
            Metric.LOSS,
            evidence(count=9),
            False,
            "9 held-out examples are too few to decide; at least 10 are needed",
        ),
        (PublishGate(minimum_metric=1.0), Metric.LOSS, evidence(count=9), False, "too few"),
        (
            BEAT_BARE,
            Metric.LOSS,
            Evidence(evidence().estimate, evidence().comparisons, is_apart=False),
            False,
            "chose it",
        ),
    ],
)
def test_decisions(gate: PublishGate | None, metric: Metric, known: Evidence, publish: bool, reason: str) -> None:
    decision = decide(gate, metric, known)
    assert decision.publish is publish
    assert reason in decision.reason


def test_a_gate_that_too_few_examples_are_going_to_judge_is_refused_when_the_job_is_created() -> None:
    for gate in (BEAT_BARE, BEAT_CURRENT, PublishGate(minimum_metric=0.5)):
        with pytest.raises(
            InvalidInput, match=r"spec\.publish\.gate: 9 held-out examples can't decide it; at least 10 are needed"
        ):
            check_gate(gate, 9)
        check_gate(gate, 10)
    check_gate(PublishGate(), 1)
    check_gate(None, 0)


def test_a_gate_needs_more_examples_where_half_of_them_only_choose() -> None:
    """18 examples would leave 9 to judge, and the gate would refuse the prompt after the whole training."""
    few = r"18 held-out examples can't decide it; at least 19 are needed with early_stop_patience"
    with pytest.raises(InvalidInput, match=few):
        check_gate(BEAT_BARE, 18, judged_apart=True)
    check_gate(BEAT_BARE, 19, judged_apart=True)
    rows = tuple(EncodedExample(Example(line=n, input=str(n), output="x"), (1,), (2,)) for n in range(19))
    assert len(parted(EncodedDataset(rows), 128, 512, cross_fit=False).judging) == 10


def test_a_verdict_says_what_the_prompt_beats_and_what_not() -> None:
    def compared(other: float, count: int) -> Comparison:
        return evidence(other=other, count=count).comparisons[BARE]

    assert verdict({}) == ""
    assert verdict({CURRENT: compared(2.0, 40)}) == ""
    assert (
        verdict({BARE: compared(2.0, 40), INSTRUCTED: compared(1.5, 40)})
        == "the prompt beats the bare model and the model with an instruction"
    )
    assert verdict({BARE: compared(1.05, 40)}) == (
        "the prompt beats none of the other ways to use the model; loss 1 does not beat 1.05 of the bare model beyond "
        "chance: better by 0.05 (95 % interval -0.05 to 0.15, 40 held-out examples)"
    )
    assert verdict({BARE: compared(2.0, 1)}) == (
        "1 held-out example is too few to tell whether the prompt is better than the bare model (loss 1 against 2): "
        "at least 10 are needed"
    )


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (1.0, "does not beat 1 of the bare model: no difference ("),
        (float("nan"), "of the bare model: can't be compared ("),
    ],
)
def test_equal_and_missing_numbers_are_neither_better_nor_worse(other: float, said: str) -> None:
    assert said in verdict({BARE: evidence(other=other).comparisons[BARE]})


def test_numbers_that_differ_are_written_differently() -> None:
    decision = decide(PublishGate(minimum_metric=0.123461), Metric.LOSS, evidence(value=0.123462))
    assert decision.reason.startswith("loss 0.123462 (95 % interval")
    assert decision.reason.endswith("is above 0.123461")
    assert decide(BEAT_BARE, Metric.LOSS, evidence(value=2.0, other=2.0001, margin=1e-5)).reason.startswith(
        "loss 2 beats 2.0001 of the bare model"
    )
