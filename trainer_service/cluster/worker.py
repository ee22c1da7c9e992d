"""One worker: a base model, a cohort on it, and the thread that steps it. Knows neither Ray nor the job manager.

Tasks and stops go into an inbox that the thread empties between two steps; events go into an outbox that is polled. If
an error ends the thread, the next poll raises WorkerLost. A second thread reads and tokenizes a task's datasets while
other jobs train.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Protocol

from shared.errors import InvalidInput, SoftPromptError
from shared.tracing import Tracing
from trainer_service.cluster.interface import WorkerLost, WorkerMemory, WorkerReport
from trainer_service.cluster.node_datasets import NodeDatasets
from trainer_service.cluster.outbox import Outbox
from trainer_service.cluster.spans import JobSpans
from trainer_service.training.checkpoint import digest_of
from trainer_service.training.data.places import field_of_spec
from trainer_service.training.events import Failed, Finished, Preparing, Stopped, TrainingEvent, TrainingTask
from trainer_service.training.faults import is_device_fault

log = logging.getLogger(__name__)

_PROGRESS_SECONDS = 1.0
"""The interval between reports of the number of prepared examples."""
_Command = Callable[["Trainer"], None]


class Trainer(Protocol):
    """The methods of `training.cohort.Cohort` that a worker uses."""

    @property
    def is_idle(self) -> bool:
        """Whether it has no job."""

    def prepare(self, task: TrainingTask, on_progress: Callable[[int], None]) -> TrainingTask:
        """The task with its examples as token ids. It is called in another thread than `step`."""

    def add(self, task: TrainingTask) -> None:
        """Take a prepared task into the cohort."""

    def stop(self, job_id: str) -> object:
        """Stop a job at the next step."""

    def step(self) -> Sequence[TrainingEvent]:
        """Run one step of all jobs; returns what happened."""


class _Superseded(Exception):
    """The task was stopped or replaced while its examples were prepared, or the worker ends."""


class Worker:
    """Trains jobs. `load`, run in the worker's thread, returns the trainer and the details for reports."""

    def __init__(
        self,
        load: Callable[[], tuple[Trainer, dict[str, str]]],
        measure_memory: Callable[[], WorkerMemory] | None = None,
        tracing: Tracing | None = None,
        datasets: NodeDatasets | None = None,
    ) -> None:
        self._load, self._measure_memory = load, measure_memory
        self._datasets = datasets or NodeDatasets()
        self._spans = JobSpans(tracing or Tracing())
        self._outbox = Outbox()
        self._inbox: deque[_Command] = deque()
        self._work = threading.Condition()
        self._attempts: dict[str, int] = {}
        self._reading: dict[str, int] = {}
        """Attempts whose datasets are not read yet, by job; guarded by `_work`."""
        self._unread = queue.SimpleQueue[TrainingTask | None]()
        self._reading_since: float | None = None
        self._trainer: Trainer | None = None
        self._loaded = threading.Event()
        """Set once loading has ended, successfully or not."""
        self._ready = False
        self._closing = False
        self._error: BaseException | None = None
        self._busy_since: float | None = None
        self._details: dict[str, str] = {"pid": str(os.getpid())}
        self._thread = threading.Thread(target=self._run, name="worker-steps", daemon=True)
        self._thread.start()
        threading.Thread(target=self._read, name="worker-datasets", daemon=True).start()

    def add(self, task: TrainingTask) -> None:
        """Add a task without waiting. Wrong or unreadable data becomes the job's Failed event."""
        if task.data is None:
            self._send(self._joining(task))
            return
        with self._work:
            self._reading[task.job_id] = max(task.attempt, self._reading.get(task.job_id, 0))
        self._unread.put(task)

    def _joining(self, task: TrainingTask) -> _Command:
        def command(trainer: Trainer) -> None:
            known = self._attempts.get(task.job_id, 0)
            if known >= task.attempt:
                return
            if known:
                trainer.stop(task.job_id)
                self._publish(trainer.step())
            self._attempts[task.job_id] = task.attempt
            self._spans.begin(task)
            try:
                trainer.add(task)
            except SoftPromptError as error:
                field = getattr(error, "violations", None)
                self._publish(
                    [Failed(task.job_id, task.attempt, "BAD_DATA", error.message, field[0].field if field else "")]
                )

        return command

    def _read(self) -> None:
        """Prepare one task after the other, until the worker is closed."""
        while (task := self._unread.get()) is not None:
            if self._reading.get(task.job_id) != task.attempt:
                continue
            self._reading_since = time.monotonic()
            found: TrainingTask | Failed
            try:
                found = self._prepared(task)
            except _Superseded:
                self._datasets.forget(task.job_id)
                continue
            except Exception as error:
                found = _unread(task, error)
            finally:
                self._reading_since = None
            with self._work:
                if self._reading.get(task.job_id) != task.attempt:
                    self._datasets.forget(task.job_id)  # stopped or replaced meanwhile
                    continue
                del self._reading[task.job_id]
                if isinstance(found, TrainingTask):
                    self._inbox.append(self._joining(found))
                    self._work.notify_all()
            if isinstance(found, Failed):
                self._outbox.put([found])

    def _prepared(self, task: TrainingTask) -> TrainingTask:
        """The task with its examples read and tokenized. Raises _Superseded once it is stopped or replaced."""
        assert task.data is not None
        train, validation = self._datasets.load(task.job_id, task.data)
        digest = digest_of(task.spec, train, validation)
        read = replace(task, train=train, validation=validation, data=None, digest=digest)
        self._reading_since = None
        self._loaded.wait()
        if self._trainer is None:
            raise _Superseded
        reported_at = 0.0

        def on_progress(num_prepared: int) -> None:
            nonlocal reported_at
            if self._closing or self._reading.get(task.job_id) != task.attempt:
                raise _Superseded
            now = self._reading_since = time.monotonic()  # progress shows that the thread doesn't hang
            if now - reported_at >= _PROGRESS_SECONDS:
                reported_at = now
                self._outbox.put([Preparing(task.job_id, task.attempt, num_prepared, len(train) + len(validation))])

        return self._trainer.prepare(read, on_progress)

    def stop(self, job_id: str, attempt: int) -> None:
        """Stop an attempt without waiting; its Stopped event follows. Ignored if the worker doesn't have it."""
        with self._work:
            was_reading = self._reading.get(job_id) == attempt
            if was_reading:
                del self._reading[job_id]
        if was_reading:
            self._outbox.put([Stopped(job_id, attempt, step=0, data=None)])
            return

        def command(trainer: Trainer) -> None:
            if self._attempts.get(job_id) == attempt:
                trainer.stop(job_id)

        self._send(command)

    def poll(self, since: int, timeout_seconds: float) -> WorkerReport:
        """Wait for events after `since`. Raises WorkerLost once the step thread has died, after its last events."""
        last, events = self._outbox.take(since, timeout_seconds)
        if not events and self._error is not None:
            raise self._loss(self._error)
        ready = self._ready  # read before the times below, so that a ready worker isn't reported as busy loading
        now = time.monotonic()
        busy_seconds = max(now - (self._busy_since or now), now - (self._reading_since or now))
        with self._work:
            attempts = self._attempts | self._reading
        memory = self._measure_memory() if self._measure_memory is not None and ready else None
        return WorkerReport(last, events, ready, attempts, busy_seconds, dict(self._details), memory)

    def close(self, timeout_seconds: float = 10.0) -> None:
        """End the thread after its current step."""
        with self._work:
            self._closing = True
            self._work.notify_all()
        self._outbox.wake()
        self._loaded.set()
        self._unread.put(None)
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
            self._trainer = trainer
            self._loaded.set()
            self._ready = True
            self._outbox.wake()
            while self._next(trainer):
                if not trainer.is_idle:
                    with self._busy():
                        self._step(trainer)
        except BaseException as error:
            log.exception("the worker's step thread died")
            self._error = error
            self._loaded.set()
            self._outbox.wake()

    def _loss(self, error: BaseException) -> WorkerLost:
        base_model_failed = not self._ready and isinstance(error, Exception) and not is_device_fault(error)
        return WorkerLost(self._why_lost(error), isinstance(error, MemoryError), base_model_failed)

    def _why_lost(self, error: BaseException) -> str:
        """The reason shown to all jobs of the worker.

        Once jobs train, only texts of torch and the hardware are included: others could quote a job's data.
        """
        name = type(error).__name__
        return name if self._ready and not isinstance(error, RuntimeError | MemoryError) else f"{name}: {error}"

    def _next(self, trainer: Trainer) -> bool:
        """Wait for work, then process the inbox. Returns False if the worker is closed."""
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
        """Measure the time of one operation for `busy_seconds`."""
        self._busy_since = time.monotonic()
        try:
            yield
        finally:
            self._busy_since = None

    def _step(self, trainer: Trainer) -> None:
        self._publish(trainer.step())
        if trainer.is_idle:
            gc.collect()  # reference cycles in autograd would keep the last job's memory until a later collection

    def _publish(self, events: Sequence[TrainingEvent]) -> None:
        for event in events:
            if isinstance(event, (Finished, Failed, Stopped)) and self._attempts.get(event.job_id) == event.attempt:
                del self._attempts[event.job_id]
                self._datasets.forget(event.job_id)
        self._spans.record(events)
        self._outbox.put(events)


def _unread(task: TrainingTask, error: Exception) -> Failed:
    """The Failed event of a task whose datasets can't be used."""
    failed = partial(Failed, task.job_id, task.attempt)
    if isinstance(error, SoftPromptError):
        field = str(field_of_spec(error.violations[0].location)) if isinstance(error, InvalidInput) else "spec.dataset"
        return failed("BAD_DATA", error.message, field)
    if isinstance(error, OSError):
        log.warning("a dataset can't be read: %s", error)
        return failed("DATA_UNAVAILABLE", f"the worker could not read the dataset: {error.strerror}")
    if isinstance(error, MemoryError):
        message = "the dataset is too large for this worker's memory"
        return failed("OUT_OF_MEMORY", message, "spec.dataset", retryable=True)
    log.error("reading the datasets of job %s failed", task.job_id, exc_info=error)
    return failed("INTERNAL", "reading the dataset failed; the worker's log has the cause", retryable=True)
