"""Out of memory: the job that causes it is found before any other gets less, and the budget grows back."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.trainer_service.training.models import build
from tests.trainer_service.training.tasks import generation, of, run, task
from trainer_service.training import budget as budget_module
from trainer_service.training import passes as passes_module
from trainer_service.training.attention.forward import PackedForward, PlainForward, choose_forward
from trainer_service.training.attention.row_memory import RowMemory
from trainer_service.training.budget import GOOD_PASSES, MIN_TOKENS, TokenBudget, bytes_per_pair
from trainer_service.training.cohort import Cohort
from trainer_service.training.compute import backward
from trainer_service.training.events import Failed, Finished, StepDone
from trainer_service.training.spec import Example

BASE = build()
LONG = (*generation(3), Example(line=9, input="x" * 200, output="y"))


def limit_memory(monkeypatch: pytest.MonkeyPatch, too_much: Any) -> None:
    """A device that runs out of memory for passes of which `too_much(parts, token_budget)` says so."""
    original = backward

    def limited(base_model: Any, forward: Any, parts: Any, token_budget: int) -> torch.Tensor:
        if too_much(parts, token_budget):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(base_model, forward, parts, token_budget)

    monkeypatch.setattr(passes_module, "backward", limited)


def longest(parts: Any) -> int:
    return max(len(row.tokens) for part in parts for row in part.rows)


def test_a_row_that_never_fits_fails_its_job_alone_and_no_other_gets_less(monkeypatch: pytest.MonkeyPatch) -> None:
    limit_memory(monkeypatch, lambda parts, token_budget: longest(parts) > 150)
    cohort = Cohort(BASE, token_budget=1024)
    events = run(cohort, *(task(f"good-{number}") for number in range(4)), task("long", train=LONG, batch_size=4))
    failed = of(events, Failed, "long")[0]
    assert (failed.code, failed.field, failed.retryable) == ("OUT_OF_MEMORY", "spec.dataset", True)
    assert "the longest example alone, 211 tokens behind 6 virtual tokens" in failed.message
    assert all(len(of(events, StepDone, f"good-{number}")) == 20 for number in range(4))
    assert cohort.token_budget == 1024


def test_a_job_that_needs_smaller_passes_gets_them_and_the_others_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    budgets: dict[bool, set[int]] = {True: set(), False: set()}

    def too_much(parts: Any, token_budget: int) -> bool:
        large = longest(parts) > 150
        if not (large and token_budget > 300):
            budgets[large].add(token_budget)
        return large and token_budget > 300

    limit_memory(monkeypatch, too_much)
    cohort = Cohort(BASE, token_budget=1024)
    events = run(cohort, task("one"), task("two"), task("long", train=LONG, batch_size=4))
    assert all(of(events, Finished, job_id) for job_id in ("one", "two", "long"))
    assert budgets == {True: {256}, False: {1024}}
    assert cohort.token_budget == 1024


def test_only_where_the_combination_is_too_much_all_get_less(monkeypatch: pytest.MonkeyPatch) -> None:
    limit_memory(monkeypatch, lambda parts, token_budget: len(parts) > 1 and token_budget > 600)
    cohort = Cohort(BASE, token_budget=1024)
    events = run(cohort, task("one"), task("two"))
    assert of(events, Finished, "one")
    assert of(events, Finished, "two")
    assert cohort.token_budget == 512


def passes(budget: TokenBudget, count: int) -> None:
    for _ in range(count):
        budget.fitted(budget.current)


def test_the_budget_grows_back_and_remembers_what_failed() -> None:
    budget = TokenBudget(1000)
    budget.ran_out()
    assert budget.current == 500
    passes(budget, GOOD_PASSES)
    assert budget.current == 625
    passes(budget, 3 * GOOD_PASSES)
    assert budget.current == 1000, "after one failure what failed is tried again as early as anything"
    budget.ran_out()
    passes(budget, 3 * GOOD_PASSES)
    assert budget.current == 976
    passes(budget, GOOD_PASSES)
    assert budget.current == 976, "what failed twice is tried again later"
    passes(budget, GOOD_PASSES)
    assert budget.current == 1000


def test_small_passes_say_nothing_and_the_budget_has_bounds() -> None:
    budget = TokenBudget(1000)
    budget.ran_out()
    for _ in range(10 * GOOD_PASSES):
        budget.fitted(100)
    assert budget.current == 500
    for _ in range(20):
        budget.ran_out()
    assert budget.current == MIN_TOKENS


def test_memory_of_a_row_is_quadratic_only_where_scores_are_written_out(monkeypatch: pytest.MonkeyPatch) -> None:
    eager = build("gemma2")
    assert bytes_per_pair(eager, PackedForward(eager)) == 4 * 4 * 3, "heads, float32, three at a time"
    assert bytes_per_pair(eager, PlainForward(eager)) == 4 * 4 * 2 * 2, "heads, float32, scores and weights, layers"
    assert bytes_per_pair(BASE, PlainForward(BASE)) == 0, "PyTorch's fused attention"
    monkeypatch.setattr("shared.kernels.ops.takes", lambda tensor, width: False)
    assert bytes_per_pair(BASE, PackedForward(BASE)) == 4 * 4 * 3, "a device without compiled kernels"


def test_what_fits_is_the_longest_row_that_does() -> None:
    memory = RowMemory(bytes_per_position=500_000, bytes_per_pair=32 * 2 * 3)
    assert memory.row_bytes(8192) == pytest.approx(16.1 * 2**30, rel=0.1), "a row of 8k on a GPU: most of it are scores"
    fits = memory.fitting_positions(8 << 30)
    assert memory.row_bytes(fits) <= 8 << 30 < memory.row_bytes(fits + 1)
    assert RowMemory(100).fitting_positions(1000) == 10


def test_a_row_beyond_the_devices_memory_is_refused_before_any_step(monkeypatch: pytest.MonkeyPatch) -> None:
    base = build("gemma2")
    memory = budget_module.measured_row_memory(base, choose_forward(base))
    monkeypatch.setattr(passes_module, "least_free_bytes", lambda base_model: memory.row_bytes(100))
    cohort = Cohort(base, token_budget=1024)
    events = run(cohort, task("good"), task("long", train=LONG))
    failed = of(events, Failed, "long")[0]
    assert (failed.code, of(events, StepDone, "long")) == ("OUT_OF_MEMORY", [])
    assert "211 tokens behind 6 virtual tokens" in failed.message
    assert "examples of up to 94 tokens fit" in failed.message
    assert of(events, Finished, "good")
