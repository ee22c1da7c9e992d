"""The worker without a cluster: its thread, its inbox and its outbox."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from shared.model import base_model
from tests.tiny_models import FLOAT32
from tests.trainer_service.builders import effective_spec
from tests.trainer_service.scripted import ScriptedTrainer
from tests.waiting import wait_until
from trainer_service.cluster.interface import WorkerLost
from trainer_service.cluster.outbox import Outbox
from trainer_service.cluster.worker import Worker
from trainer_service.training import passes
from trainer_service.training.cohort import Cohort
from trainer_service.training.events import (
    Checkpointed,
    Evaluated,
    Failed,
    Finished,
    Started,
    StepDone,
    Stopped,
    TrainingEvent,
    TrainingTask,
)
from trainer_service.training.spec import Example


def task(
    attempt: int = 1, first_input: str = "plain", num_steps: int = 5, job_id: str = "job", **changes: Any
) -> TrainingTask:
    examples = tuple(Example(line=line, input=f"{first_input} {line}", output="yes") for line in range(1, 9))
    return TrainingTask(
        job_id, attempt, effective_spec(num_steps=num_steps).training, examples[:6], examples[6:], **changes
    )


def until_ready(worker: Worker) -> None:
    """Waits until the base model is loaded."""
    wait_until(lambda: worker.poll(0, 0.05).ready)


def drain(worker: Worker, until: type[TrainingEvent]) -> list[TrainingEvent]:
    """Every event, in order, up to the first of this kind."""
    events, since = list[TrainingEvent](), 0
    while True:
        report = worker.poll(since, 0.5)
        events += report.events
        since = report.last
        if any(isinstance(event, until) for event in report.events):
            return events


def poll_to_the_end(worker: Worker, since: int = 0) -> None:
    """Polls until it raises WorkerLost."""
    while True:
        since = worker.poll(since, 0.1).last


def test_a_real_cohort_trains_in_the_workers_thread(tiny_model_dir: Path) -> None:
    worker = Worker(
        lambda: (
            Cohort(base_model.load(tiny_model_dir, FLOAT32)),
            {"device": "cpu"},
        )
    )
    worker.add(task(num_steps=3))
    events = drain(worker, Finished)
    assert isinstance(events[0], Started)
    assert [event.step for event in events if isinstance(event, StepDone)] == [1, 2, 3]
    assert any(isinstance(event, Evaluated) for event in events)
    report = worker.poll(0, 0)
    assert (report.ready, report.attempts, report.details["device"]) == (True, {}, "cpu")
    worker.close()


def test_events_that_were_not_acknowledged_are_sent_again() -> None:
    worker = Worker(lambda: (ScriptedTrainer(), {}))
    worker.add(task(num_steps=3))
    drain(worker, Finished)
    first, again = worker.poll(0, 0.1), worker.poll(0, 0.1)
    assert (again.last, again.events) == (first.last, first.events)
    assert worker.poll(first.last, 0.01).events == ()
    assert worker.poll(0, 0.01).events == (), "events are forgotten once a poll has gone beyond them"
    worker.close()


def test_a_higher_attempt_replaces_a_lower_one_and_a_lower_one_is_ignored() -> None:
    worker = Worker(lambda: (ScriptedTrainer(), {}))
    worker.add(task(attempt=2, first_input="forever", num_steps=1000))
    drain(worker, StepDone)
    worker.add(task(attempt=1, num_steps=1))
    worker.add(task(attempt=3, num_steps=4))
    events = drain(worker, Finished)
    assert [event.attempt for event in events if isinstance(event, Stopped)] == [2]
    assert [event.attempt for event in events if isinstance(event, Finished)] == [3]
    worker.close()


def test_a_stop_for_another_attempt_is_ignored() -> None:
    worker = Worker(lambda: (ScriptedTrainer(), {}))
    worker.add(task(attempt=2, num_steps=30))
    worker.stop("job", 1)
    worker.stop("unknown", 1)
    events = drain(worker, Finished)
    assert not any(isinstance(event, Stopped) for event in events)
    worker.close()


def test_a_worker_whose_thread_died_says_what_it_still_has_to_say_and_then_why() -> None:
    worker = Worker(lambda: (ScriptedTrainer(), {}))
    worker.add(task(num_steps=2, job_id="good"))
    drain(worker, Finished)
    since = worker.poll(0, 0).last
    worker.add(task(first_input="crash", job_id="bad"))
    with pytest.raises(WorkerLost, match="the step thread crashed"):
        poll_to_the_end(worker, since)
    worker.close()


class Waiting(ScriptedTrainer):
    """Each step blocks until it is released."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.go = threading.Event(), threading.Event()

    def step(self) -> Sequence[TrainingEvent]:
        self.begun.set()
        self.go.wait()
        return super().step()


def test_it_says_for_how_long_its_step_has_been_going_on() -> None:
    trainer = Waiting()
    worker = Worker(lambda: (trainer, {}))
    until_ready(worker)
    worker.add(task(num_steps=1))
    trainer.begun.wait()
    first = worker.poll(0, 0.05).busy_seconds
    assert worker.poll(0, 0.05).busy_seconds >= first + 0.05, "polls are answered meanwhile"
    trainer.go.set()
    drain(worker, Finished)
    wait_until(lambda: worker.poll(10_000, 0).busy_seconds == 0.0)  # nothing to do
    worker.close()


def test_loading_counts_as_work_and_not_into_the_first_step() -> None:
    go = threading.Event()

    def load() -> tuple[ScriptedTrainer, dict[str, str]]:
        go.wait()
        return ScriptedTrainer(), {}

    worker = Worker(load)
    report = worker.poll(0, 0.2)
    assert (report.ready, report.busy_seconds >= 0.2) == (False, True)
    go.set()
    until_ready(worker)
    assert worker.poll(0, 0).busy_seconds == 0.0
    worker.close()


def test_a_broken_device_ends_the_worker_and_fails_no_job(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(passes, "backward", broken)
    worker = Worker(lambda: (Cohort(base_model.load(tiny_model_dir, FLOAT32)), {}))
    worker.add(task(num_steps=3))
    worker.add(task(num_steps=3, job_id="other"))
    with pytest.raises(WorkerLost, match="AcceleratorError: CUDA error") as lost:
        drain(worker, Failed)
    assert not lost.value.out_of_memory
    worker.close()


def test_a_base_model_that_can_not_be_loaded_is_a_lost_worker() -> None:
    def load() -> tuple[ScriptedTrainer, dict[str, str]]:
        raise MemoryError("weights don't fit")

    worker = Worker(load)
    with pytest.raises(WorkerLost, match="weights don't fit") as lost:
        poll_to_the_end(worker)
    assert lost.value.out_of_memory
    worker.close()


def test_an_error_that_may_quote_one_jobs_data_is_not_shown_to_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def step(*_: object) -> None:
        raise KeyError("a customer's secret")

    monkeypatch.setattr(Worker, "_step", step)
    worker = Worker(lambda: (ScriptedTrainer(), {}))
    worker.add(task())
    with pytest.raises(WorkerLost) as lost:
        poll_to_the_end(worker)
    assert lost.value.reason == "KeyError"
    worker.close()


def test_an_outbox_that_is_not_emptied_stays_small_and_loses_nothing_that_counts() -> None:
    outbox = Outbox()
    for step in range(5000):
        outbox.put(
            [StepDone("job", 1, step, 5000, 1.0, 1.0, 0.1, 1, 10, 0.1), Checkpointed("job", 1, step, bytes(1000))]
        )
        if step % 1000 == 0:
            outbox.put([Evaluated("job", 1, step, {"loss": 1.0}, False)])
    outbox.put([Failed("job", 1, "INTERNAL", "why")])
    last, events = outbox.take(0, 0)
    assert len(events) < 1000
    assert [event.step for event in events if isinstance(event, Checkpointed)] == [4999]
    assert [event.step for event in events if isinstance(event, StepDone)][-1] == 4999
    assert sum(isinstance(event, Evaluated) for event in events) == 5
    assert isinstance(events[-1], Failed)
    assert outbox.take(last, 0) == (last, ())
