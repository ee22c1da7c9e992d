"""A cohort: one frozen base model and a changing set of tuning jobs, trained in one step loop.

Since the model is frozen and prompts share no parameters, one pass carries the batches of many jobs: each row attends to the prefix of
its own job, and the gradient of the sum of the losses is each prompt's own. Jobs join and leave at step boundaries. Whatever goes
wrong with one job, or with its data, is that job's `Failed`; the others don't notice. What is wrong with the machine escapes `step`, and
the cohort is lost: its jobs go on elsewhere.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from shared.base_model import BaseModel
from shared.errors import AlreadyExists
from trainer_service.training.budget import measured_token_budget
from trainer_service.training.compute import backward, score
from trainer_service.training.events import Checkpointed, Finished, Stopped, TrainingEvent, TrainingTask
from trainer_service.training.fair_share import FairShare
from trainer_service.training.faults import failure, is_machine_fault, is_out_of_memory
from trainer_service.training.forward import choose_forward
from trainer_service.training.run import Life, TuningRun
from trainer_service.training.work import CallWork, ScoreWork, StepOutcome, TrainWork, Work

log = logging.getLogger(__name__)

MIN_TOKEN_BUDGET = 64


@dataclass
class _Member:
    run: TuningRun
    life: Life
    work: Work | None = None
    """What comes next; None only before the first piece."""
    stopping: bool = False
    checkpointed_at: float = 0.0


class Cohort:
    """Not thread-safe: one thread calls `add`, `stop` and `step`."""

    def __init__(self, base_model: BaseModel, *, token_budget: int | None = None, checkpoint_interval_seconds: float = 10.0) -> None:
        """`token_budget`: positions in one step; by default what fits into memory (`budget`), and on a CPU keeps a step short.

        Raises PreconditionFailed for a model that can't be trained on.
        """
        self._base_model = base_model
        self._forward = choose_forward(base_model)
        self._token_budget = max(MIN_TOKEN_BUDGET, token_budget or measured_token_budget(base_model, self._forward))
        self._checkpoint_interval_seconds = checkpoint_interval_seconds
        self._members: dict[str, _Member] = {}
        self._fair_share = FairShare[str]()

    @property
    def is_idle(self) -> bool:
        return not self._members

    @property
    def token_budget(self) -> int:
        return self._token_budget

    def add(self, task: TrainingTask) -> None:
        """The job takes part from the next step on; what is wrong with it becomes its Failed event. Raises AlreadyExists."""
        if task.job_id in self._members:
            raise AlreadyExists(f"job {task.job_id} is in this cohort already")
        run = TuningRun(task, self._base_model)
        self._members[task.job_id] = _Member(run, run.life(), checkpointed_at=time.monotonic())
        self._fair_share.join(task.job_id, task.priority, task.tenant, task.weight)

    def stop(self, job_id: str) -> bool:
        """The job leaves at the next step boundary, with a Stopped event. False if it is not here (any more)."""
        member = self._members.get(job_id)
        if member is not None:
            member.stopping = True
        return member is not None

    def step(self) -> list[TrainingEvent]:
        """One pass for the jobs whose turn it is; everything that happened since the last step, in order for each job.

        Raises what the machine or its device raised (`is_machine_fault`); nothing here can be used after that.
        """
        events: list[TrainingEvent] = []
        for job_id in [job_id for job_id, member in self._members.items() if member.stopping]:
            events += self._leave(job_id)
        for job_id in [job_id for job_id, member in self._members.items() if member.work is None]:
            events += self._advance(job_id, None)
        costs = {job_id: self._cost(member.work) for job_id, member in self._members.items() if member.work is not None}
        for job_id, outcome in self._compute(self._fair_share.choose(costs, self._token_budget)).items():
            events += self._fail(job_id, outcome) if isinstance(outcome, Exception) else self._advance(job_id, outcome)
        return events + self._checkpoints()

    def check_integrity(self) -> None:
        """Raises RuntimeError if what is counted twice differs."""
        if len(self._fair_share) != len(self._members) or any(job_id not in self._fair_share for job_id in self._members):
            raise RuntimeError("members and fair share differ")

    def _compute(self, chosen: Sequence[str]) -> dict[str, Any]:
        """The result, or the exception, of each chosen job's work."""
        works = {job_id: self._members[job_id].work for job_id in chosen}
        train = {job_id: work for job_id, work in works.items() if isinstance(work, TrainWork)}
        scoring = {job_id: work for job_id, work in works.items() if isinstance(work, ScoreWork)}
        results: dict[str, Any] = {}
        results |= self._isolated(train, self._train)
        results |= self._isolated(scoring, lambda some: score(self._base_model, self._forward, some))
        for job_id, work in works.items():
            if isinstance(work, CallWork):
                results |= self._isolated({job_id: work}, lambda some: [some[0].call()])
        return results

    def _isolated(self, works: dict[str, Any], compute: Callable[[list[Any]], list[Any]]) -> dict[str, Any]:
        """`compute` for all at once; if that raises, each alone, so that only who is to blame fails."""
        if not works:
            return {}
        try:
            return dict(zip(works, compute(list(works.values())), strict=True))
        except Exception as error:
            if is_machine_fault(error):
                raise
            if is_out_of_memory(error) and self._token_budget > MIN_TOKEN_BUDGET:
                self._token_budget = max(MIN_TOKEN_BUDGET, self._token_budget // 2)
                log.warning("out of memory: the token budget is now %d", self._token_budget)
                if self._base_model.device.type == "cuda":
                    torch.cuda.empty_cache()
                return self._isolated(works, compute)
            if len(works) == 1:
                return {next(iter(works)): error}
        return {job_id: result for job_id, work in works.items() for result in self._isolated({job_id: work}, compute).values()}

    def _train(self, works: list[TrainWork]) -> list[list[StepOutcome]]:
        started = time.perf_counter()
        parts = [part for work in works for part in work.parts]
        for part in parts:
            part.trainee.discard_gradients()
        losses = backward(self._base_model, self._forward, parts, self._token_budget)
        norms = torch.stack([part.trainee.clip() for part in parts])
        rates = [part.trainee.learning_rate for part in parts]
        for part in parts:
            part.trainee.update()
        measured = torch.stack([losses, norms]).tolist()  # the one wait for the device
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
            return self._forward.num_tokens(0 if work.prompt is None else work.prompt.shape[0], work.rows) // 3  # no backward pass
        return sum(self._forward.num_tokens(part.trainee.num_virtual_tokens, part.rows) for part in work.parts)

    def _advance(self, job_id: str, result: Any) -> list[TrainingEvent]:
        """Send the result into the job's life and keep what it wants next."""
        member = self._members[job_id]
        try:
            member.work = member.life.send(result)
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
        stopped = Stopped(run.task.job_id, run.task.attempt, step=run.step, data=run.checkpoint(), best=run.best_prompt())
        self._remove(job_id)
        return [*events, stopped]

    def _fail(self, job_id: str, error: Exception) -> list[TrainingEvent]:
        run = self._members[job_id].run
        events = run.take_events()
        self._remove(job_id)
        return [*events, failure(run.task, error)]

    def _remove(self, job_id: str) -> None:
        self._members.pop(job_id).life.close()
        self._fair_share.leave(job_id)

    def _checkpoints(self) -> list[TrainingEvent]:
        events, now = list[TrainingEvent](), time.monotonic()
        for member in self._members.values():
            if now - member.checkpointed_at >= self._checkpoint_interval_seconds:
                data = member.run.checkpoint()
                member.checkpointed_at = now
                if data is not None:
                    events.append(Checkpointed(member.run.task.job_id, member.run.task.attempt, step=member.run.step, data=data))
        return events
