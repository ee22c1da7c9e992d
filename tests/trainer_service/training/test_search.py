"""A search: which candidates are dropped when, by which losses, and what that costs."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from safetensors.torch import load, save

from tests.trainer_service.training.models import build
from tests.trainer_service.training.tasks import classification, generation, losses, matrix, of, run, task
from trainer_service.training.checkpoint import TriedCandidate
from trainer_service.training.cohort import Cohort
from trainer_service.training.events import (
    Checkpointed,
    Evaluated,
    Finished,
    Started,
    StepDone,
    TrainingEvent,
    TrainingTask,
)
from trainer_service.training.search import candidates, num_kept, ranked
from trainer_service.training.spec import Init

BASE = build()
STEPS = 64
"""Candidates are compared after steps 2, 4 and 8."""


def search(**hyperparameters: Any) -> TrainingTask:
    settings = {"num_steps": STEPS, "learning_rate": 0.1, "search": True, **hyperparameters}
    return task(train=classification(), validation=classification(12, 60), **settings)


@pytest.mark.parametrize("num_steps", [32, 33, 63, 100, 320, 1000, 16_000])
def test_six_candidates_cost_at_most_1_3_times_the_work_of_one(num_steps: int) -> None:
    work, left = 0, 6
    for step in range(1, num_steps + 1):
        work += left
        left = min(left, num_kept(step, num_steps) or left)
    assert left == 1
    assert 1.2 < work / num_steps <= 1.3


@pytest.mark.parametrize("num_steps", range(1, 40))
def test_one_candidate_is_left_whatever_the_number_of_steps(num_steps: int) -> None:
    kept = [num_kept(step, num_steps) for step in range(1, num_steps + 1)]
    assert [number for number in kept if number is not None][-1] == 1


def test_a_candidate_that_skipped_a_step_comes_last_whatever_its_losses() -> None:
    steady, lower, skipped = (TriedCandidate(learning_rate=1.0, init=Init()) for _ in range(3))
    for one, values in ((steady, (2.0, 1.0)), (lower, (1.5, 1.0)), (skipped, (0.5,))):
        for value in values:
            one.add_loss(value)
    assert ranked([steady, lower, skipped]) == [1, 0, 2]
    for one in (steady, lower, skipped):
        one.end_comparison()
    assert (steady.losses, lower.losses, skipped.losses) == ([1.5], [1.25], [0.5])


def first_losses(one: TrainingTask) -> list[float]:
    """The losses of the steps in which a search has several candidates."""
    cohort, events = Cohort(BASE), list[TrainingEvent]()
    cohort.add(one)
    while len(of(events, StepDone)) < 8:
        events += cohort.step()
    return losses(events)


def test_the_losses_compared_are_those_that_each_candidate_has_alone() -> None:
    """Also beside another job."""
    one = search()
    result = of(run(Cohort(BASE), one, task("other")), Finished)[0].result
    for candidate, tried in zip(candidates(one.spec), result.tried, strict=True):
        changes = {"learning_rate": candidate.learning_rate, "init": candidate.init, "search": False}
        alone = one.spec.hyperparameters.model_copy(update=changes)
        spec = one.spec.model_copy(update={"hyperparameters": alone})
        trained = first_losses(replace(one, spec=spec))
        means = [sum(trained[:2]) / 2, sum(trained[2:4]) / 2, sum(trained[4:8]) / 4]
        assert tried.losses == pytest.approx(means[: len(tried.losses)], rel=1e-3)


def test_the_candidates_with_the_highest_losses_are_dropped() -> None:
    whole = run(Cohort(BASE), search())
    result = of(whole, Finished)[0].result
    assert sorted(one.num_steps for one in result.tried) == [2, 2, 2, 4, 8, STEPS]
    assert [event.num_examples for event in of(whole, StepDone)] == [24] * 2 + [12] * 2 + [8] * 4 + [4] * (STEPS - 8)
    for place, num_left in enumerate((3, 2, 1)):
        compared = [one for one in result.tried if len(one.losses) > place]
        left = [one for one in compared if one.num_steps > (2, 4, 8)[place]]
        assert sorted(one.losses[place] for one in compared)[:num_left] == sorted(one.losses[place] for one in left)
    (chosen,) = [one for one in result.tried if one.chosen]
    assert (chosen.learning_rate, chosen.init, chosen.end) == (result.learning_rate, result.init, "")
    assert [one.end for one in result.tried].count("worse") == 5


def test_held_out_examples_choose_only_the_checkpoint_of_the_last_candidate() -> None:
    events = run(Cohort(BASE), search(evaluation_interval_steps=2))
    evaluated, result = of(events, Evaluated), of(events, Finished)[0].result
    assert [event.step for event in evaluated] == [0, *range(8, STEPS + 1, 2)], "step 0: the model without a prompt"
    assert [bool(one.metrics) for one in result.tried] == [one.chosen for one in result.tried]
    assert result.num_judging == 12, "all of them, by cross-fitting"
    assert result.is_apart


def test_a_search_needs_no_held_out_examples() -> None:
    events = run(Cohort(BASE), task(num_steps=STEPS, search=True))
    result = of(events, Finished)[0].result
    assert result.best_step == STEPS
    assert [one.num_steps for one in result.tried if one.chosen] == [STEPS]


def test_a_run_without_a_search_lists_no_candidates() -> None:
    assert not of(run(Cohort(BASE), task(num_steps=2)), Finished)[0].result.tried


def test_a_search_from_a_prompt_has_three_candidates() -> None:
    source = of(run(Cohort(BASE), task()), Finished)[0].result.prefix
    init = {"method": "FROM_PROMPT", "source_version": "prompts/p/versions/1"}
    one = replace(task(num_steps=STEPS, search=True, init=init), source=source)
    tried = of(run(Cohort(BASE), one), Finished)[0].result.tried
    assert sorted(candidate.num_steps for candidate in tried) == [4, 8, STEPS]
    assert sorted(len(candidate.losses) for candidate in tried) == [2, 3, 3]


def test_a_resumed_search_tries_and_chooses_the_same() -> None:
    one = search()
    whole = run(Cohort(BASE, checkpoint_interval_seconds=0), one)
    by_step = {event.step: event.data for event in of(whole, Checkpointed)}
    for step in (1, 2, 3, 6, 8):
        resumed = run(Cohort(BASE), replace(one, checkpoint=by_step[step]))
        assert of(resumed, Started)[0].step == step
        assert of(resumed, Finished)[0].result.tried == of(whole, Finished)[0].result.tried
        assert matrix(resumed).equal(matrix(whole))


@pytest.mark.parametrize("is_search", [True, False])
def test_a_search_of_an_earlier_release_starts_again(is_search: bool) -> None:
    """Up to format 4, its candidates were compared by held-out scores."""
    one = search() if is_search else task(validation=generation(6, 50))
    data = of(run(Cohort(BASE, checkpoint_interval_seconds=0), one), Checkpointed)[9].data
    state = json.loads(json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]["state"])
    for tried in state["tried"]:
        for name in ("losses", "loss_sum", "num_losses"):
            del tried[name]
    old = save(load(data), {"state": json.dumps({**state, "format": 4})})
    events = run(Cohort(BASE), replace(one, checkpoint=old, attempt=2))
    started = of(events, Started)[0]
    assert (started.step == 0) is is_search
    assert ("compared a search's candidates by held-out scores" in started.restart_reason) is is_search
    assert len(of(events, StepDone)) == one.spec.hyperparameters.num_steps - started.step
