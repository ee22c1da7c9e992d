"""One worker: a base model, a cohort on it, and the thread that steps it. Knows neither Ray nor the job manager.

Tasks and stops are put into an inbox that the thread empties between two steps; what happens goes into an outbox that is polled. When
the thread dies of an error, the next poll raises it.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from shared.errors import SoftPromptError
from shared.tracing import Tracing
from trainer_service.cluster.interface import WorkerLost, WorkerMemory, WorkerReport
from trainer_service.cluster.outbox import Outbox
from trainer_service.cluster.spans import JobSpans
from trainer_service.training.events import Failed, Finished, Stopped, TrainingEvent, TrainingTask
from trainer_service.training.faults import is_device_fault

log = logging.getLogger(__name__)

_Command = Callable[["Trainer"], None]


class Trainer(Protocol):
    """What a worker steps: `training.cohort.Cohort`."""

    @property
    def is_idle(self) -> bool: ...

    def add(self, task: TrainingTask) -> None: ...

    def stop(self, job_id: str) -> object: ...

    def step(self) -> Sequence[TrainingEvent]: ...


class Worker:
    """`load` makes the trainer, in the worker's own thread; `details` of what it runs on are known after that."""

    def __init__(
        self,
        load: Callable[[], tuple[Trainer, dict[str, str]]],
        measure_memory: Callable[[], WorkerMemory] | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        self._load, self._measure_memory = load, measure_memory
        self._spans = JobSpans(tracing or Tracing())
        self._outbox = Outbox()
        self._inbox: deque[_Command] = deque()
        self._work = threading.Condition()
        self._attempts: dict[str, int] = {}
        self._ready = False
        self._closing = False
        self._error: BaseException | None = None
        self._busy_since: float | None = None
        self._details: dict[str, str] = {"pid": str(os.getpid())}
        self._thread = threading.Thread(target=self._run, name="worker-steps", daemon=True)
        self._thread.start()

    def add(self, task: TrainingTask) -> None:
        def command(trainer: Trainer) -> None:
            known = self._attempts.get(task.job_id, 0)
            if known >= task.attempt:
                return
            if known:
                trainer.stop(task.job_id)
                self._tell(trainer.step())
            self._attempts[task.job_id] = task.attempt
            self._spans.begin(task)
            try:
                trainer.add(task)
            except SoftPromptError as error:
                field = getattr(error, "violations", None)
                self._tell([Failed(task.job_id, task.attempt, "BAD_DATA", error.message, field[0].field if field else "")])

        self._send(command)

    def stop(self, job_id: str, attempt: int) -> None:
        def command(trainer: Trainer) -> None:
            if self._attempts.get(job_id) == attempt:
                trainer.stop(job_id)

        self._send(command)

    def poll(self, since: int, timeout_seconds: float) -> WorkerReport:
        """Raises WorkerLost once the step thread has died; what it told before that comes first."""
        last, events = self._outbox.take(since, timeout_seconds)
        if not events and self._error is not None:
            raise _loss(self._error, is_loading=not self._ready)
        ready = self._ready  # before the time: a worker that is ready has ended loading, and is not busy with that any more
        busy_since = self._busy_since
        busy_seconds = 0.0 if busy_since is None else time.monotonic() - busy_since
        memory = self._measure_memory() if self._measure_memory is not None and ready else None
        return WorkerReport(last, events, ready, dict(self._attempts), busy_seconds, dict(self._details), memory)

    def close(self, timeout_seconds: float = 10.0) -> None:
        """End the thread after its current step."""
        with self._work:
            self._closing = True
            self._work.notify_all()
        self._outbox.wake()
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout_seconds)

    def _send(self, command: _Command) -> None:
        with self._work:
            self._inbox.append(command)
            self._work.notify_all()

    def _run(self) -> None:
        try:
            with self._busy():
                trainer, details = self._load()
            self._details |= details
            self._ready = True
            self._outbox.wake()
            while self._next(trainer):
                if not trainer.is_idle:
                    with self._busy():
                        self._step(trainer)
        except BaseException as error:
            log.exception("the worker's step thread died")
            self._error = error
            self._outbox.wake()

    def _next(self, trainer: Trainer) -> bool:
        """Wait for work, then do what is in the inbox. False: the worker ends."""
        with self._work:
            while not (self._closing or self._inbox or not trainer.is_idle):
                self._work.wait()
            if self._closing:
                return False
            commands = list(self._inbox)
            self._inbox.clear()
        for command in commands:
            with self._busy():
                command(trainer)
        return True

    @contextlib.contextmanager
    def _busy(self) -> Iterator[None]:
        """One piece of work: its time counts from here."""
        self._busy_since = time.monotonic()
        try:
            yield
        finally:
            self._busy_since = None

    def _step(self, trainer: Trainer) -> None:
        self._tell(trainer.step())
        if trainer.is_idle:
            gc.collect()  # cycles through autograd would keep the last job's memory until some later collection

    def _tell(self, events: Sequence[TrainingEvent]) -> None:
        for event in events:
            if isinstance(event, (Finished, Failed, Stopped)) and self._attempts.get(event.job_id) == event.attempt:
                del self._attempts[event.job_id]
        self._spans.tell(events)
        self._outbox.put(events)


def _loss(error: BaseException, *, is_loading: bool) -> WorkerLost:
    base_model_failed = is_loading and isinstance(error, Exception) and not is_device_fault(error)
    return WorkerLost(f"{type(error).__name__}: {error}", isinstance(error, MemoryError), base_model_failed)


def wait_ready(worker: Worker, deadline_seconds: float) -> None:
    """For scripts and tests: block until the base model is loaded. Raises TimeoutError, or WorkerLost if loading failed."""
    end = time.monotonic() + deadline_seconds
    while not worker.poll(0, 0.05).ready:
        if time.monotonic() > end:
            raise TimeoutError("the worker did not become ready")
