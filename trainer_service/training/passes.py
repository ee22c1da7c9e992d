"""Computes the work of many jobs in common passes over the model, and isolates the jobs that make a pass fail.

Knows the forward pass, its memory and the budget of positions; which jobs there are, and their turns, is the cohort's.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from shared.model.base_model import BaseModel
from trainer_service.training.attention.forward import check_key_values, choose_forward
from trainer_service.training.attention.packing import Row
from trainer_service.training.budget import TokenBudget, least_free_bytes, measured_row_memory, measured_token_budget
from trainer_service.training.compute import backward, memory_cost, score_within
from trainer_service.training.faults import RowTooLarge, is_machine_fault, is_out_of_memory
from trainer_service.training.work import CallWork, ScoreWork, StepOutcome, TrainWork, Work

log = logging.getLogger(__name__)

MIN_TOKEN_BUDGET = 64
_Compute = Callable[[list[Any], int], list[Any]]
"""Computes the results of works in passes of at most the given number of positions."""


class Passes:
    """The passes over one base model. `budget`: the positions that a pass may have now."""

    def __init__(self, base_model: BaseModel, token_budget: int | None) -> None:
        """`token_budget`: positions in a pass; the default fits into memory, and on a CPU keeps a step short.

        Raises PreconditionFailed for a model that can't be used for training.
        """
        self._base_model = base_model
        self.forward = choose_forward(base_model)
        """How the model computes a pass."""
        self.forward.row_memory = measured_row_memory(base_model, self.forward)
        self.budget = TokenBudget(token_budget or measured_token_budget(base_model, self.forward))
        self._free_bytes = least_free_bytes(base_model)
        self._smaller: dict[str, int] = {}
        """Positions per pass of the jobs that need smaller passes than the others."""

    def forget(self, job_id: str) -> None:
        """Forget a job that left."""
        self._smaller.pop(job_id, None)

    def compute(self, works: Mapping[str, Work]) -> dict[str, Any]:
        """The result, or the exception, of each job's work. Raises machine faults."""
        train = {job_id: work for job_id, work in works.items() if isinstance(work, TrainWork)}
        scoring = {job_id: work for job_id, work in works.items() if isinstance(work, ScoreWork)}
        results: dict[str, Any] = {}
        results |= self._isolated(train, self._train)
        results |= self._isolated(
            scoring, lambda some, budget: score_within(self._base_model, self.forward, some, budget)
        )
        for job_id, work in works.items():
            if isinstance(work, CallWork):
                results |= self._isolated({job_id: work}, lambda some, budget: [some[0].call()])
        return results

    def _isolated(self, works: dict[str, Any], compute: _Compute) -> dict[str, Any]:
        """Compute all works together, except for jobs that need smaller passes. If that fails, only the faulty jobs
        fail or get smaller passes.

        After an out-of-memory error, the jobs are bisected with the full budget until the jobs that don't fit alone are
        found. Each of these gets smaller passes, or fails if its longest row doesn't fit. The common budget shrinks
        only if all jobs need smaller passes or only their combination was too large; it grows back (`TokenBudget`).
        """
        together = {job_id: work for job_id, work in works.items() if job_id not in self._smaller}
        results = self._together(together, compute) if together else {}
        for job_id, work in works.items():
            if job_id not in together:
                results |= self._bisected({job_id: work}, compute, self._smaller[job_id], {})
        return results

    def _together(self, works: dict[str, Any], compute: _Compute) -> dict[str, Any]:
        budget, less = self.budget.current, dict[str, int]()
        found = self._attempt(list(works.values()), compute, budget)
        if not isinstance(found, Exception):
            if not isinstance(next(iter(works.values())), CallWork):
                self.budget.fitted(sum(self.cost(work) for work in works.values()))
            return dict(zip(works, found, strict=True))
        results = self._divided(works, found, compute, budget, less)
        if not is_out_of_memory(found):
            return results
        too_large = [
            job_id for job_id, result in results.items() if isinstance(result, Exception) and is_out_of_memory(result)
        ]
        if len(less) + len(too_large) == len(works) and less:
            self.budget.ran_out(min(less.values()))
        elif not less and not too_large:
            self.budget.ran_out()
        else:
            self._smaller |= less
        log.warning(
            "out of memory",
            extra={"fields": {"token_budget": self.budget.current, "less": less, "too_large": too_large}},
        )
        return results

    def _bisected(self, works: dict[str, Any], compute: _Compute, budget: int, less: dict[str, int]) -> dict[str, Any]:
        """Compute the works, bisecting them on errors. Adds the budgets of jobs with smaller passes to `less`."""
        found = self._attempt(list(works.values()), compute, budget)
        return (
            self._divided(works, found, compute, budget, less)
            if isinstance(found, Exception)
            else dict(zip(works, found, strict=True))
        )

    def _divided(
        self, works: dict[str, Any], error: Exception, compute: _Compute, budget: int, less: dict[str, int]
    ) -> dict[str, Any]:
        """Compute the works in parts after `error` occurred with all of them at once."""
        if len(works) == 1:
            [(job_id, work)] = works.items()
            return {job_id: self._with_less(job_id, work, error, compute, budget, less)}
        items = list(works.items())
        size = len(items) // 2 if is_out_of_memory(error) else 1
        parts = (
            [dict(items[:size]), dict(items[size:])]
            if is_out_of_memory(error)
            else [{job_id: work} for job_id, work in items]
        )
        return {
            job_id: result for part in parts for job_id, result in self._bisected(part, compute, budget, less).items()
        }

    def _with_less(
        self, job_id: str, work: Work, error: Exception, compute: _Compute, budget: int, less: dict[str, int]
    ) -> Any:
        """The job's result in smaller passes, the smallest of one row; or the error."""
        least = max(MIN_TOKEN_BUDGET, self._largest_row(work))
        while is_out_of_memory(error) and budget > least:
            budget = max(least, budget // 2)
            found = self._attempt([work], compute, budget)
            if not isinstance(found, Exception):
                less[job_id] = budget
                return found[0]
            error = found
        return self._too_large(work) if is_out_of_memory(error) and not isinstance(work, CallWork) else error

    def _attempt(self, works: list[Any], compute: _Compute, budget: int) -> list[Any] | Exception:
        """The results, or the exception. Raises machine faults."""
        try:
            return compute(works, budget)
        except Exception as error:
            if is_machine_fault(error):
                raise
            # the frames of the traceback hold the tensors of the pass
            found = error.with_traceback(None) if is_out_of_memory(error) else error
        if is_out_of_memory(found) and self._base_model.device.type == "cuda":
            torch.cuda.empty_cache()
        return found

    def _segments(self, work: Work) -> list[tuple[int, Sequence[Row]]]:
        """(virtual tokens, rows)"""
        if isinstance(work, TrainWork):
            return [(part.trainee.num_virtual_tokens, part.rows) for part in work.parts]
        return [(work.num_virtual_tokens, work.rows)] if isinstance(work, ScoreWork) else []

    def _largest_row(self, work: Work) -> int:
        rows = [(num_virtual, row) for num_virtual, rows in self._segments(work) for row in rows]
        return max((memory_cost(self.forward, num_virtual, [row]) for num_virtual, row in rows), default=0)

    def _too_large(self, work: Work) -> RowTooLarge:
        longest = max((len(row.tokens), num_virtual) for num_virtual, rows in self._segments(work) for row in rows)
        fits = self._fitting_tokens(longest[1])
        return RowTooLarge(*longest, fits=fits if fits < longest[0] else None)

    def check_key_values(self) -> None:
        """Raises PreconditionFailed if the model's passes can't be given keys and values."""
        check_key_values(self._base_model, self.forward)

    def check_row(self, num_virtual_tokens: int, num_tokens: int) -> None:
        """Raises RowTooLarge for a row that doesn't fit alone into the memory left after loading the base model."""
        memory = self.forward.row_memory
        if memory.row_bytes(num_virtual_tokens + num_tokens) > self._free_bytes:
            raise RowTooLarge(num_tokens, num_virtual_tokens, self._fitting_tokens(num_virtual_tokens))

    def _fitting_tokens(self, num_virtual_tokens: int) -> int:
        return max(0, self.forward.row_memory.fitting_positions(self._free_bytes) - num_virtual_tokens)

    def _train(self, works: list[TrainWork], token_budget: int) -> list[list[StepOutcome]]:
        started = time.perf_counter()
        parts = [part for work in works for part in work.parts]
        for part in parts:
            part.trainee.discard_gradients()
        losses = backward(self._base_model, self.forward, parts, token_budget)
        norms, rates = torch.zeros_like(losses), [part.trainee.learning_rate for part in parts]
        ends = [work.is_last for work in works for _ in work.parts]
        for index, (part, is_last) in enumerate(zip(parts, ends, strict=True)):
            if is_last:
                part.trainee.add_kept_gradients()
                norms[index] = part.trainee.clip()
            else:
                part.trainee.keep_gradients()
        measured = torch.stack([losses, norms]).tolist()  # the one wait for the device
        for loss, norm, part, is_last in zip(*measured, parts, ends, strict=True):
            if is_last:
                part.trainee.update() if math.isfinite(loss) and math.isfinite(norm) else part.trainee.skip()
        seconds = time.perf_counter() - started
        outcomes = [
            StepOutcome(loss, norm, rate, self.forward.num_tokens(part.trainee.num_virtual_tokens, part.rows), seconds)
            for loss, norm, rate, part in zip(*measured, rates, parts, strict=True)
        ]
        grouped, first = list[list[StepOutcome]](), 0
        for work in works:
            grouped.append(outcomes[first : first + len(work.parts)])
            first += len(work.parts)
        return grouped

    def cost(self, work: Work) -> int:
        """The positions that the work takes, by which the jobs share the passes."""
        if isinstance(work, CallWork):
            return work.num_tokens
        if isinstance(work, ScoreWork):
            return self.forward.num_tokens(work.num_virtual_tokens, work.rows) // 3  # no backward pass
        return sum(self.forward.num_tokens(part.trainee.num_virtual_tokens, part.rows) for part in work.parts)
