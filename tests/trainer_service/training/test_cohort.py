"""Jobs in one cohort: the same trajectory as alone, exact resume, and departure that touches no other job."""

from __future__ import annotations

import statistics
from dataclasses import replace
from typing import Any

import pytest
import torch

from shared.errors import AlreadyExists
from tests.trainer_service.training.models import build
from tests.trainer_service.training.tasks import classification, generation, losses, matrix, of, run, task
from trainer_service.training import passes
from trainer_service.training.cohort import Cohort
from trainer_service.training.compute import backward
from trainer_service.training.events import (
    Checkpointed,
    Evaluated,
    Finished,
    Judging,
    Started,
    StepDone,
    Stopped,
    TrainingEvent,
)
from trainer_service.training.recipe.selection import slack
from trainer_service.training.spec import Example, Metric

BASE = build()


def _varied() -> list[Any]:
    return [
        task("a", num_virtual_tokens=3, batch_size=2, learning_rate=0.03, seed=1),
        task(
            "b", train=classification(), num_virtual_tokens=17, batch_size=7, schedule="LINEAR", warmup_steps=4, seed=2
        ),
        task(
            "c", train=generation(9), num_virtual_tokens=8, batch_size=9, schedule="CONSTANT", weight_decay=0.1, seed=3
        ),
        task(
            "d",
            reparameterisation="RESIDUAL",
            max_grad_norm=0.01,
            label_smoothing=0.1,
            init={"method": "RANDOM"},
            seed=4,
        ),
        task("e", kind="PREFIX", num_virtual_tokens=6, batch_size=5, learning_rate=0.01, seed=5),
    ]


def test_a_job_follows_the_same_trajectory_in_a_cohort_as_alone() -> None:
    together = run(Cohort(BASE), *_varied())
    for one in _varied():
        alone = run(Cohort(BASE), one)
        assert len(losses(alone, one.job_id)) == 20
        assert losses(together, one.job_id) == pytest.approx(losses(alone, one.job_id), rel=1e-3)
        torch.testing.assert_close(matrix(together, one.job_id), matrix(alone, one.job_id), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("settings", [{}, {"search": True}])
def test_the_evaluations_that_are_left_are_estimated_and_the_last_one_is_counted(settings: dict[str, Any]) -> None:
    one = task(validation=generation(8, 100), num_steps=6, evaluation_interval_steps=2, **settings)
    events = run(Cohort(BASE), one)
    steps, judging = of(events, StepDone), of(events, Judging)
    assert all(step.evaluation_seconds > 0 for step in steps), "the bare model is measured before the first step"
    counts = [(event.num_measured, event.num_models) for event in judging]
    total = counts[-1][1]
    assert [count for count, _ in counts] == sorted(count for count, _ in counts)
    assert counts[0][0] == 0
    assert counts[-1] == (total, total)
    assert total >= 3
    assert events.index(judging[-1]) < events.index(of(events, Finished)[0])


@pytest.mark.parametrize(
    "settings", [{}, {"reparameterisation": "RESIDUAL", "max_grad_norm": 0.01}, {"search": True}, {"kind": "PREFIX"}]
)
def test_a_step_in_pieces_is_the_same_step(settings: dict[str, Any]) -> None:
    one = task(
        train=generation(60), validation=generation(8, 100), batch_size=40, num_steps=6, learning_rate=0.05, **settings
    )
    whole, pieces = run(Cohort(BASE, token_budget=1 << 20), one), run(Cohort(BASE, token_budget=128), one)
    assert losses(pieces) == pytest.approx(losses(whole), rel=1e-3)
    assert [event.num_examples for event in of(pieces, StepDone)] == [
        event.num_examples for event in of(whole, StepDone)
    ]
    torch.testing.assert_close(matrix(pieces), matrix(whole), rtol=1e-2, atol=1e-3)


def test_a_huge_batch_of_one_job_makes_no_step_of_the_others_long(monkeypatch: pytest.MonkeyPatch) -> None:
    budget, positions = 256, list[int]()
    cohort = Cohort(BASE, token_budget=budget)
    long_rows = tuple(Example(line=n + 1, input=f"{n} " + "y" * 100, output="no") for n in range(64))
    cohort.add(replace(task("greedy", train=long_rows, batch_size=64, num_steps=50), tenant="greedy"))
    cohort.add(replace(task("modest", num_steps=40), tenant="modest"))
    real = backward

    def counted(base_model: Any, forward: Any, parts: Any, token_budget: int) -> torch.Tensor:
        positions.append(sum(forward.num_tokens(part.trainee.num_virtual_tokens, part.rows) for part in parts))
        return real(base_model, forward, parts, token_budget)

    monkeypatch.setattr(passes, "backward", counted)
    events = list[TrainingEvent]()
    while not of(events, Finished, "modest"):
        events += cohort.step()
    assert max(positions) <= budget + 10, "the virtual tokens come on top"
    assert len(of(events, StepDone, "greedy")) <= 2, "they share positions, not steps"


def test_a_tenant_with_many_jobs_gets_no_more_of_a_cohort_than_its_weight() -> None:
    cohort = Cohort(BASE, token_budget=64)
    for number in range(4):
        cohort.add(replace(task(f"many-{number}", num_steps=50, batch_size=4), tenant="many", weight=1.0, priority=10))
    cohort.add(replace(task("one", num_steps=6, batch_size=4), tenant="one", weight=2.0))
    events = list[TrainingEvent]()
    while not of(events, Finished, "one"):
        events += cohort.step()
        theirs = sum(len(of(events, StepDone, f"many-{number}")) for number in range(4))
        assert theirs <= 4, "half of the 6 steps of the other tenant"
    assert theirs >= 2


def test_a_job_that_stops_within_a_step_goes_on_with_that_step() -> None:
    one = task(train=generation(60), batch_size=40, num_steps=4, learning_rate=0.05)
    whole, cohort = run(Cohort(BASE, token_budget=128), one), Cohort(BASE, token_budget=128)
    cohort.add(one)
    events = list[TrainingEvent]()
    while not of(events, StepDone):
        events += cohort.step()
    cohort.step()
    cohort.stop("job")
    stopped = of(cohort.step(), Stopped)[0]
    assert stopped.step == 1
    torch.testing.assert_close(
        matrix(run(Cohort(BASE, token_budget=128), replace(one, checkpoint=stopped.data))), matrix(whole)
    )


def test_training_learns_and_reports_in_order() -> None:
    examples = classification(24)
    one = task(train=examples, validation=classification(12, 100), num_steps=120, learning_rate=0.1, batch_size=8)
    events = run(Cohort(build(initializer_range=0.3), checkpoint_interval_seconds=0), one)
    assert isinstance(events[0], Started)
    assert isinstance(events[-1], Finished)
    assert events[0].statistics.num_train == 24
    assert [event.step for event in of(events, StepDone)] == list(range(1, 121))
    evaluated = of(events, Evaluated)
    assert [event.step for event in evaluated] == [0, 15, 30, 45, 60, 75, 90, 105, 120]
    assert evaluated[-1].metrics["loss"] < 0.8 * evaluated[0].metrics["loss"]
    result = events[-1].result
    best = [event for event in evaluated if event.is_best][-1]
    top = max(event.metrics["accuracy"] for event in evaluated[1:])
    equal = [event for event in evaluated[1:] if event.metrics["accuracy"] >= top - slack(Metric.ACCURACY, top, 12)]
    assert best.metrics["loss"] == min(event.metrics["loss"] for event in equal)
    assert result.best_step == best.step
    assert result.is_apart, "the reported numbers are those of checkpoints that the other half of the examples chose"
    assert set(result.metrics) == set(best.metrics)
    assert result.template_metrics == evaluated[0].metrics
    assert set(result.bare_metrics) == {"loss", "token_accuracy", "accuracy", "macro_f1"}
    assert result.bare_metrics["loss"] != result.template_metrics["loss"], (
        "one reads the raw input, the other the rendered template"
    )
    assert result.score_stability == pytest.approx(
        statistics.pstdev(event.metrics["accuracy"] for event in evaluated[-5:])
    )
    assert len(result.nearest_tokens) == 6
    assert all(event.grad_norm > 0 for event in of(events, StepDone))
    assert {len(golden.top_token_ids) for golden in result.golden} == {8}


def test_a_golden_record_is_what_the_plain_model_answers() -> None:
    result = of(run(Cohort(BASE), task(validation=generation(5, 50))), Finished)[0].result
    golden = result.golden[1]
    text = BASE.model.get_input_embeddings()(torch.tensor(golden.input_ids))
    with torch.no_grad():
        logits = BASE.model(inputs_embeds=torch.cat([result.prefix.tensors()["prompt_embeddings"], text])[None]).logits[
            0, -1
        ]
    values, ids = logits.log_softmax(-1).topk(8)
    assert golden.top_token_ids == tuple(ids.tolist())
    assert golden.top_logprobs == pytest.approx(values.tolist(), abs=1e-4)
    assert golden.dtype == "float32"


@pytest.mark.parametrize(
    "settings", [{}, {"reparameterisation": "RESIDUAL"}, {"search": True, "num_steps": 64}, {"kind": "PREFIX"}]
)
def test_resuming_from_any_checkpoint_continues_the_same_trajectory_exactly(settings: dict[str, Any]) -> None:
    one = task(train=classification(), validation=classification(9, 60), evaluation_interval_steps=6, **settings)
    whole = run(Cohort(BASE, checkpoint_interval_seconds=0), one)
    checkpoints = of(whole, Checkpointed)
    by_step = {checkpoint.step: checkpoint for checkpoint in checkpoints}
    for step in (1, 6, 7, 19):
        resumed = run(Cohort(BASE), replace(one, checkpoint=by_step[step].data, attempt=2))
        assert resumed[0] == replace(of(whole, Started)[0], attempt=2, step=step)
        assert losses(resumed) == losses(whole)[step:]
        torch.testing.assert_close(matrix(resumed), matrix(whole), rtol=0, atol=0)
        assert resumed[-1].result.metrics == whole[-1].result.metrics  # type: ignore[attr-defined]
        assert resumed[-1].result.best_step == whole[-1].result.best_step  # type: ignore[attr-defined]


def test_a_checkpoint_of_another_job_or_a_damaged_one_means_starting_again(caplog: pytest.LogCaptureFixture) -> None:
    data = of(run(Cohort(BASE, checkpoint_interval_seconds=0), task()), Checkpointed)[3].data
    for checkpoint, other in (
        (data, task(seed=9)),
        (data[: len(data) // 2], task()),
        (b"", task()),
        (b"\xff" * 64, task()),
    ):
        events = run(Cohort(BASE), replace(other, checkpoint=checkpoint))
        assert of(events, Started)[0].step == 0
        assert len(of(events, StepDone)) == 20
        assert "starts again from step 0" in caplog.text
        caplog.clear()


def test_the_same_seed_repeats_and_another_differs() -> None:
    first, again, other = (run(Cohort(BASE), task(seed=seed, init={"method": "SAMPLE_VOCAB"})) for seed in (5, 5, 6))
    assert torch.equal(matrix(first), matrix(again))
    assert not torch.equal(matrix(first), matrix(other))


def test_stopping_takes_effect_at_the_next_step_and_keeps_everything() -> None:
    cohort = Cohort(BASE)
    cohort.add(task("stays"))
    cohort.add(task("goes", validation=generation(4, 50), evaluation_interval_steps=2))
    events: list[TrainingEvent] = []
    while len(of(events, Evaluated, "goes")) < 3:
        events += cohort.step()
    assert cohort.stop("goes")
    stopped = of(cohort.step(), Stopped, "goes")[0]
    assert stopped.step == len(of(events, StepDone, "goes"))
    assert stopped.data is not None
    assert stopped.best is not None
    assert not cohort.stop("goes")
    rest = run(cohort)
    assert of(rest, Finished, "stays")
    assert not of(rest, StepDone, "goes")
    resumed = run(
        Cohort(BASE),
        replace(task("goes", validation=generation(4, 50), evaluation_interval_steps=2), checkpoint=stopped.data),
    )
    assert of(resumed, Started, "goes")[0].step == stopped.step


def test_a_job_that_is_stopped_before_it_began_has_no_checkpoint() -> None:
    cohort = Cohort(BASE)
    cohort.add(task())
    cohort.stop("job")
    assert cohort.step() == [Stopped("job", 1, step=0, data=None, best=None)]
    assert cohort.is_idle


def test_a_job_joins_a_running_cohort_and_is_not_taken_twice() -> None:
    cohort = Cohort(BASE)
    cohort.add(task("first"))
    for _ in range(5):
        cohort.step()
    with pytest.raises(AlreadyExists):
        cohort.add(task("first"))
    events = run(cohort, task("second"))
    assert of(events, Finished, "first")
    assert of(events, Finished, "second")
