"""A cohort: one frozen base model and a changing set of tuning jobs, trained in one step loop.

Since the model is frozen and prompts share no parameters, one pass carries the batches of many jobs: each row attends
to the prefix of its own job, and each prompt's gradient of the summed loss equals the gradient of its own loss. Jobs
join and leave at step boundaries. A fault of one job or its data becomes that job's `Failed` event and doesn't affect
the others. `step` raises machine faults; the cohort can't be used after that, and its jobs resume elsewhere.
"""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

from shared.errors import AlreadyExists
from shared.model.base_model import BaseModel
from shared.process.free_memory import free_bytes
from shared.text.template import InputEncoder
from trainer_service.training.attention.forward import check_key_values, choose_forward
from trainer_service.training.attention.packing import Row
from trainer_service.training.budget import TokenBudget, measured_row_memory, measured_token_budget
from trainer_service.training.compute import backward, memory_cost, score_within
from trainer_service.training.data.encoding import encode_split
from trainer_service.training.data.token_rows import OnProgress, TokenRowsCache
from trainer_service.training.events import Checkpointed, Finished, Stopped, TrainingEvent, TrainingTask
from trainer_service.training.fair_share import FairShare
from trainer_service.training.faults import RowTooLarge, failure, is_machine_fault, is_out_of_memory
from trainer_service.training.run import RunGenerator, TuningRun
from trainer_service.training.work import CallWork, ScoreWork, StepOutcome, TrainWork, Work

log = logging.getLogger(__name__)

MIN_TOKEN_BUDGET = 64
_Compute = Callable[[list[Any], int], list[Any]]
"""Computes the results of works in passes of at most the given number of positions."""


@dataclass
class _Member:
    run: TuningRun
    generator: RunGenerator
    work: Work | None = None
    """The next piece of work; None only before the first piece."""
    stopping: bool = False
    checkpointed_at: float = 0.0
    token_budget: int | None = None
    """Positions per pass, if this job needs smaller passes than the others."""


class Cohort:
    """The step loop over all jobs. Not thread-safe: one thread calls `add`, `stop` and `step`."""

    def __init__(
        self, base_model: BaseModel, *, token_budget: int | None = None, checkpoint_interval_seconds: float = 10.0
    ) -> None:
        """`token_budget`: positions in one step. The default fits into memory, and on a CPU keeps a step short.

        Raises PreconditionFailed for a model that can't be used for training.
        """
        self._base_model = base_model
        self._forward = choose_forward(base_model)
        self._forward.row_memory = measured_row_memory(base_model, self._forward)
        self._budget = TokenBudget(token_budget or measured_token_budget(base_model, self._forward))
        self._free_bytes = free_bytes(base_model.device)
        self._checkpoint_interval_seconds = checkpoint_interval_seconds
        self._members: dict[str, _Member] = {}
        self._fair_share = FairShare[str]()
        self._token_rows = TokenRowsCache()

    @property
    def is_idle(self) -> bool:
        """Whether the cohort has no jobs."""
        return not self._members

    @property
    def token_budget(self) -> int:
        """The number of positions that a pass may have now."""
        return self._budget.current

    def add(self, task: TrainingTask) -> None:
        """Add a job, which takes part from the next step on. Its faults become its Failed event.

        Raises AlreadyExists.
        """
        if task.job_id in self._members:
            raise AlreadyExists(f"job {task.job_id} is in this cohort already")
        run = TuningRun(task, self._base_model, self._check_row, self.token_budget, self._check_key_values)
        self._members[task.job_id] = _Member(run, run.run(), checkpointed_at=time.monotonic())
        self._fair_share.join(task.job_id, task.priority, task.tenant, task.weight)

    def prepare(self, task: TrainingTask, on_progress: OnProgress | None = None) -> TrainingTask:
        """The task with its examples as token ids, for `add`. May be called by another thread than `step`.

        A distillation's run makes its own, between the steps of other jobs.
        Jobs of this cohort with the same file and template share one copy. Raises InvalidInput naming lines, and the
        errors of `on_progress`.
        """
        if task.spec.distillation is not None:
            return task
        encoder = InputEncoder(self._tokenizer, task.spec.template)
        return replace(
            task,
            encoded=encode_split(
                task.train,
                task.validation,
                task.spec,
                encoder,
                self._base_model.info.max_positions,
                self._token_rows,
                on_progress,
            ),
        )

    @cached_property
    def _tokenizer(self) -> Any:
        """A copy for `prepare`, because two threads may not share a tokenizer."""
        return copy.deepcopy(self._base_model.tokenizer)

    def stop(self, job_id: str) -> bool:
        """Stop a job at the next step boundary, with a Stopped event. False if the cohort doesn't have the job."""
        member = self._members.get(job_id)
        if member is not None:
            member.stopping = True
        return member is not None

    def step(self) -> list[TrainingEvent]:
        """Run one pass for the jobs that are due. Returns the events since the last step, in order for each job.

        Raises machine and device faults (`is_machine_fault`); the cohort can't be used after that.
        """
        events: list[TrainingEvent] = []
        for job_id in [job_id for job_id, member in self._members.items() if member.stopping]:
            events += self._leave(job_id)
        for job_id in [job_id for job_id, member in self._members.items() if member.work is None]:
            events += self._advance(job_id, None)
        costs = {job_id: self._cost(member.work) for job_id, member in self._members.items() if member.work is not None}
        for job_id, outcome in self._compute(self._fair_share.choose(costs, self.token_budget)).items():
            events += self._fail(job_id, outcome) if isinstance(outcome, Exception) else self._advance(job_id, outcome)
        return events + self._checkpoints()

    def check_integrity(self) -> None:
        """Raises RuntimeError if the members and the fair share disagree about the jobs."""
        if len(self._fair_share) != len(self._members) or any(
            job_id not in self._fair_share for job_id in self._members
        ):
            raise RuntimeError("members and fair share differ")

    def _compute(self, chosen: Sequence[str]) -> dict[str, Any]:
        """The result, or the exception, of each chosen job's work."""
        works = {job_id: self._members[job_id].work for job_id in chosen}
        train = {job_id: work for job_id, work in works.items() if isinstance(work, TrainWork)}
        scoring = {job_id: work for job_id, work in works.items() if isinstance(work, ScoreWork)}
        results: dict[str, Any] = {}
        results |= self._isolated(train, self._train)
        results |= self._isolated(
            scoring, lambda some, budget: score_within(self._base_model, self._forward, some, budget)
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
        together = {job_id: work for job_id, work in works.items() if self._members[job_id].token_budget is None}
        results = self._together(together, compute) if together else {}
        for job_id, work in works.items():
            if job_id not in together:
                budget = self._members[job_id].token_budget or self.token_budget
                results |= self._bisected({job_id: work}, compute, budget, {})
        return results

    def _together(self, works: dict[str, Any], compute: _Compute) -> dict[str, Any]:
        budget, less = self.token_budget, dict[str, int]()
        found = self._attempt(list(works.values()), compute, budget)
        if not isinstance(found, Exception):
            if not isinstance(next(iter(works.values())), CallWork):
                self._budget.fitted(sum(self._cost(work) for work in works.values()))
            return dict(zip(works, found, strict=True))
        results = self._divided(works, found, compute, budget, less)
        if not is_out_of_memory(found):
            return results
        too_large = [
            job_id for job_id, result in results.items() if isinstance(result, Exception) and is_out_of_memory(result)
        ]
        if len(less) + len(too_large) == len(works) and less:
            self._budget.ran_out(min(less.values()))
        elif not less and not too_large:
            self._budget.ran_out()
        else:
            for job_id, job_budget in less.items():
                self._members[job_id].token_budget = job_budget
        log.warning(
            "out of memory", extra={"fields": {"token_budget": self.token_budget, "less": less, "too_large": too_large}}
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
        return max((memory_cost(self._forward, num_virtual, [row]) for num_virtual, row in rows), default=0)

    def _too_large(self, work: Work) -> RowTooLarge:
        longest = max((len(row.tokens), num_virtual) for num_virtual, rows in self._segments(work) for row in rows)
        fits = self._fitting_tokens(longest[1])
        return RowTooLarge(*longest, fits=fits if fits < longest[0] else None)

    def _check_key_values(self) -> None:
        check_key_values(self._base_model, self._forward)

    def _check_row(self, num_virtual_tokens: int, num_tokens: int) -> None:
        """Raises RowTooLarge for a row that doesn't fit alone into the memory left after loading the base model."""
        memory = self._forward.row_memory
        if memory.row_bytes(num_virtual_tokens + num_tokens) > self._free_bytes:
            raise RowTooLarge(num_tokens, num_virtual_tokens, self._fitting_tokens(num_virtual_tokens))

    def _fitting_tokens(self, num_virtual_tokens: int) -> int:
        return max(0, self._forward.row_memory.fitting_positions(self._free_bytes) - num_virtual_tokens)

    def _train(self, works: list[TrainWork], token_budget: int) -> list[list[StepOutcome]]:
        started = time.perf_counter()
        parts = [part for work in works for part in work.parts]
        for part in parts:
            part.trainee.discard_gradients()
        losses = backward(self._base_model, self._forward, parts, token_budget)
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
            StepOutcome(loss, norm, rate, self._forward.num_tokens(part.trainee.num_virtual_tokens, part.rows), seconds)
            for loss, norm, rate, part in zip(*measured, rates, parts, strict=True)
        ]
        grouped, first = list[list[StepOutcome]](), 0
        for work in works:
            grouped.append(outcomes[first : first + len(work.parts)])
            first += len(work.parts)
        return grouped

    def _cost(self, work: Work) -> int:
        if isinstance(work, CallWork):
            return work.num_tokens
        if isinstance(work, ScoreWork):
            return self._forward.num_tokens(work.num_virtual_tokens, work.rows) // 3  # no backward pass
        return sum(self._forward.num_tokens(part.trainee.num_virtual_tokens, part.rows) for part in work.parts)

    def _advance(self, job_id: str, result: Any) -> list[TrainingEvent]:
        """Send the result to the job's generator and keep the next piece of work."""
        member = self._members[job_id]
        try:
            member.work = member.generator.send(result)
        except StopIteration as stop:
            task = member.run.task
            events = member.run.take_events()
            self._remove(job_id)
            return [*events, Finished(task.job_id, task.attempt, result=stop.value)]
        except Exception as error:
            if is_machine_fault(error):
                raise
            return self._fail(job_id, error)
        return member.run.take_events()

    def _leave(self, job_id: str) -> list[TrainingEvent]:
        run = self._members[job_id].run
        events = run.take_events()
        stopped = Stopped(run.task.job_id, run.task.attempt, step=run.step, data=run.checkpoint(), best=run.best)
        self._remove(job_id)
        return [*events, stopped]

    def _fail(self, job_id: str, error: Exception) -> list[TrainingEvent]:
        run = self._members[job_id].run
        events = run.take_events()
        self._remove(job_id)
        return [*events, failure(run.task, error)]

    def _remove(self, job_id: str) -> None:
        self._members.pop(job_id).generator.close()
        self._fair_share.leave(job_id)

    def _checkpoints(self) -> list[TrainingEvent]:
        events, now = list[TrainingEvent](), time.monotonic()
        for member in self._members.values():
            if now - member.checkpointed_at >= self._checkpoint_interval_seconds:
                data = member.run.checkpoint()
                member.checkpointed_at = now
                if data is not None:
                    events.append(
                        Checkpointed(member.run.task.job_id, member.run.task.attempt, step=member.run.step, data=data)
                    )
        return events
