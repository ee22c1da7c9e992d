"""Datasets on a worker's node: found, received, bounded, shared by jobs; and a job that stops during reading."""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from pathlib import Path

import pytest

from shared.errors import DamagedBlob
from tests.trainer_service.builders import effective_spec
from tests.trainer_service.cluster.test_worker import drain
from tests.trainer_service.scripted import ScriptedTrainer
from trainer_service.cluster.node_datasets import Examples, NodeDatasets
from trainer_service.cluster.worker import Worker
from trainer_service.training.events import (
    DatasetFile,
    Failed,
    Finished,
    Preparing,
    Started,
    Stopped,
    TaskData,
    TrainingTask,
)


def dataset(directory: Path, first: str = "plain") -> tuple[DatasetFile, bytes]:
    data = b"".join(json.dumps({"input": f"{first} {line}", "output": "yes"}).encode() + b"\n" for line in range(10))
    path = directory / f"{first}.jsonl"
    path.write_bytes(data)
    return DatasetFile(hashlib.sha256(data).hexdigest(), str(path), len(data)), data


def task_of(file: DatasetFile, job_id: str = "job", attempt: int = 1) -> TrainingTask:
    return TrainingTask(job_id, attempt, effective_spec(num_steps=2).training, data=TaskData(file, None, 0.25, seed=1))


def elsewhere(file: DatasetFile) -> DatasetFile:
    """The same dataset as seen from a node without the trainer's disk."""
    return DatasetFile(file.digest, "/not/here.jsonl", file.size_bytes)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    directory = tmp_path / "cache"
    directory.mkdir()
    return directory


def test_a_file_with_the_right_content_is_used_where_it_is(tmp_path: Path, cache: Path) -> None:
    file, data = dataset(tmp_path)
    assert NodeDatasets(cache).has(file)
    Path(file.path).write_bytes(data.replace(b"plain", b"other"))
    assert not NodeDatasets(cache).has(file), "same size, other bytes"
    assert not NodeDatasets(cache).has(elsewhere(file))
    assert list(cache.iterdir()) == []


def test_a_received_dataset_is_whole_or_not_there(tmp_path: Path, cache: Path) -> None:
    file, data = dataset(tmp_path)
    file = elsewhere(file)
    datasets = NodeDatasets(cache)
    with pytest.raises(DamagedBlob, match="out of order"):
        datasets.receive(file, 10, data[10:])
    datasets.receive(file, 0, data[:10])
    with pytest.raises(DamagedBlob, match="other bytes"):
        datasets.receive(file, 10, data[10:].replace(b"yes", b"no!"))
    assert (datasets.has(file), list(cache.iterdir())) == (False, [])
    datasets.receive(file, 0, data[:10])
    datasets.receive(file, 0, data[:20])  # the trainer began anew
    datasets.receive(file, 20, data[20:])
    assert NodeDatasets(cache).has(file), "for another worker of this node, too"
    train, validation = datasets.load("job", TaskData(file, None, 0.25, seed=1))
    assert (len(train), len(validation)) == (8, 2)


def test_received_datasets_are_bounded_and_the_least_used_goes_first(tmp_path: Path, cache: Path) -> None:
    first, second, third = (dataset(tmp_path, name) for name in ("aaaaa", "bbbbb", "ccccc"))
    datasets = NodeDatasets(cache, max_cache_bytes=first[0].size_bytes + second[0].size_bytes)
    for age, (file, data) in ((7200, first), (3600, second)):
        datasets.receive(elsewhere(file), 0, data)
        used_at = time.time() - age
        os.utime(cache / f"sha256-{file.digest}.jsonl", (used_at, used_at))
    datasets.receive(elsewhere(third[0]), 0, third[1])
    assert [datasets.has(elsewhere(file)) for file, _ in (first, second, third)] == [False, True, True]


def test_jobs_with_the_same_dataset_share_its_examples_until_the_last_one_ends(tmp_path: Path, cache: Path) -> None:
    file, _ = dataset(tmp_path)
    datasets, data = NodeDatasets(cache), TaskData(file, file, 0.0, seed=1)
    one, two = datasets.load("one", data)[0], datasets.load("two", data)[0]
    assert one is two
    datasets.forget("one")
    assert datasets.load("three", data)[0] is one
    datasets.forget("two")
    datasets.forget("three")
    assert datasets.load("four", data)[0] is not one


def test_a_worker_reads_a_tasks_dataset_before_the_job_starts(tmp_path: Path) -> None:
    worker = Worker(lambda: (ScriptedTrainer(), {}))
    worker.add(task_of(dataset(tmp_path)[0]))
    counting, started, *_ = drain(worker, Finished)
    assert isinstance(counting, Preparing)
    assert (counting.num_prepared, counting.num_examples) == (0, 10)
    assert isinstance(started, Started)
    assert (started.statistics.num_train, started.statistics.num_validation) == (8, 2)
    worker.close()


@pytest.mark.parametrize(("damage", "code"), [(True, "BAD_DATA"), (False, "DATA_UNAVAILABLE")])
def test_a_dataset_that_cannot_be_used_is_its_jobs_failure_alone(tmp_path: Path, damage: bool, code: str) -> None:
    file, _ = dataset(tmp_path)
    if damage:
        Path(file.path).write_bytes(b"x" * file.size_bytes)
    else:
        Path(file.path).unlink()
    worker = Worker(lambda: (ScriptedTrainer(), {}))
    worker.add(task_of(file, "bad"))
    worker.add(task_of(dataset(tmp_path, "fine")[0], "good"))
    events = drain(worker, Finished)
    assert [event.code for event in events if isinstance(event, Failed)] == [code]
    worker.close()


class Slow(NodeDatasets):
    """A disk that answers only after it is released."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.go = threading.Event(), threading.Event()

    def load(self, job_id: str, data: TaskData) -> tuple[Examples, Examples]:
        self.begun.set()
        self.go.wait()
        return super().load(job_id, data)


def test_a_job_can_be_stopped_while_its_dataset_is_read_and_steps_go_on_meanwhile(tmp_path: Path) -> None:
    datasets = Slow()
    worker = Worker(lambda: (ScriptedTrainer(), {}), datasets=datasets)
    file, _ = dataset(tmp_path)
    worker.add(task_of(file, "slow"))
    datasets.begun.wait()
    spec = effective_spec(num_steps=2).training
    ready = NodeDatasets().load("quick", TaskData(file, None, 0.25, seed=1))
    worker.add(TrainingTask("quick", 1, spec, *ready))
    drain(worker, Finished)
    report = worker.poll(0, 0)
    assert report.attempts == {"slow": 1}
    assert report.busy_seconds > 0, "a disk that hangs is noticed like a step that hangs"
    worker.stop("slow", 1)
    assert any(isinstance(event, Stopped) and event.job_id == "slow" for event in drain(worker, Stopped))
    datasets.go.set()
    worker.add(task_of(file, "slow", attempt=2))
    events = [event for event in drain(worker, Finished) if event.job_id == "slow" and isinstance(event, Started)]
    assert all(event.attempt == 2 for event in events)
    worker.close()
