"""A cohort: one frozen base model and a changing set of tuning jobs, trained in one step loop.

Since the model is frozen and prompts share no parameters, one pass carries the batches of many jobs: each row attends
to the prefix of its own job, and each prompt's gradient of the summed loss equals the gradient of its own loss. Jobs
join and leave at step boundaries. A fault of one job or its data becomes that job's `Failed` event and doesn't affect
the others. `step` raises machine faults; the cohort can't be used after that, and its jobs resume elsewhere.
"""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from shared.errors import AlreadyExists
from shared.model.base_model import BaseModel
from shared.text.template import InputEncoder
from trainer_service.training.attention.forward import Forward
from trainer_service.training.data.encoding import encode_split
from trainer_service.training.data.token_rows import OnProgress, TokenRowsCache
from trainer_service.training.events import Checkpointed, Finished, Stopped, TrainingEvent, TrainingTask
from trainer_service.training.fair_share import FairShare
from trainer_service.training.faults import failure, is_machine_fault
from trainer_service.training.passes import Passes
from trainer_service.training.run import RunGenerator, TuningRun
from trainer_service.training.work import Work


@dataclass
class _Member:
    run: TuningRun
    generator: RunGenerator
    work: Work | None = None
    """The next piece of work; None only before the first piece."""
    stopping: bool = False
    checkpointed_at: float = 0.0


class Cohort:
    """The step loop over all jobs. Not thread-safe: one thread calls `add`, `stop` and `step`."""

    def __init__(
        self, base_model: BaseModel, *, token_budget: int | None = None, checkpoint_interval_seconds: float = 10.0
    ) -> None:
        """`token_budget`: positions in one step. The default fits into memory, and on a CPU keeps a step short.

        Raises PreconditionFailed for a model that can't be used for training.
        """
        self.base_model = base_model
        """The frozen model."""
        self._passes = Passes(base_model, token_budget)
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
        return self._passes.budget.current

    @property
    def forward(self) -> Forward:
        """How the model computes a pass."""
        return self._passes.forward

    def add(self, task: TrainingTask) -> None:
        """Add a job, from the next step on. Its faults become its Failed event. Raises AlreadyExists."""
        if task.job_id in self._members:
            raise AlreadyExists(f"job {task.job_id} is in this cohort already")
        passes = self._passes
        run = TuningRun(task, self.base_model, passes.check_row, self.token_budget, passes.check_key_values)
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
        encoded = encode_split(
            task.train,
            task.validation,
            task.spec,
            encoder,
            self.base_model.info.max_positions,
            self._token_rows,
            on_progress,
            self.base_model.info.vocab_size,
        )
        return replace(task, encoded=encoded, num_overlapping=encoded.num_overlapping())

    @cached_property
    def _tokenizer(self) -> Any:
        """A copy for `prepare`, because two threads may not share a tokenizer."""
        return copy.deepcopy(self.base_model.tokenizer)

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
        works = {job_id: member.work for job_id, member in self._members.items() if member.work is not None}
        costs = {job_id: self._passes.cost(work) for job_id, work in works.items()}
        chosen = self._fair_share.choose(costs, self.token_budget)
        for job_id, outcome in self._passes.compute({job_id: works[job_id] for job_id in chosen}).items():
            events += self._fail(job_id, outcome) if isinstance(outcome, Exception) else self._advance(job_id, outcome)
        return events + self._checkpoints()

    def check_integrity(self) -> None:
        """Raises RuntimeError if the members and the fair share disagree about the jobs."""
        if len(self._fair_share) != len(self._members) or any(
            job_id not in self._fair_share for job_id in self._members
        ):
            raise RuntimeError("members and fair share differ")

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
        self._passes.forget(job_id)

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
