"""What the manager reports to its observer, as Prometheus metrics."""

from __future__ import annotations

import urllib.request
from datetime import UTC, datetime, timedelta
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from shared.rpc.metrics import serve_metrics
from shared.values.results import TuningError, TuningResult
from tests.trainer_service.builders import effective_spec
from trainer_service.cluster.interface import WorkerMemory
from trainer_service.cluster.worker_state import LaunchFailure, WorkerState
from trainer_service.jobs.model import Job, StoredSpec
from trainer_service.jobs.states import JobState
from trainer_service.metrics import TrainerMetrics
from trainer_service.training.events import Checkpointed, Evaluated, Failed, Started, StepDone

CREATED = datetime(2026, 1, 1, tzinfo=UTC)


def job(state: JobState, **fields: Any) -> Job:
    spec = StoredSpec(prompt="a", dataset="datasets/x")
    return Job(
        id=fields.pop("id", "1"), spec=spec, effective=effective_spec(), state=state, create_time=CREATED, **fields
    )


def scrape(registry: CollectorRegistry) -> dict[str, float]:
    """Every sample by its name and labels, read the way Prometheus does."""
    server = serve_metrics(registry, "127.0.0.1", 0)
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics") as response:
            text = response.read().decode()
    finally:
        server.close()
    samples = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
    return {
        " ".join([sample.name, *(f"{k}={v}" for k, v in sorted(sample.labels.items()))]): sample.value
        for sample in samples
    }


def test_a_job_s_life_is_counted_once() -> None:
    registry = CollectorRegistry()
    metrics = TrainerMetrics(registry)
    started = CREATED + timedelta(seconds=7)
    metrics.job_changed(job(JobState.QUEUED))
    for _ in range(3):
        metrics.job_changed(job(JobState.RUNNING, attempt=1, start_time=started))
    metrics.job_changed(job(JobState.QUEUED, attempt=1, start_time=started))
    metrics.job_changed(job(JobState.RUNNING, attempt=2, start_time=started))
    ended = job(
        JobState.SUCCEEDED, attempt=2, end_time=CREATED + timedelta(seconds=60), result=TuningResult(published=True)
    )
    metrics.job_changed(ended)
    metrics.job_changed(ended)
    metrics.job_changed(job(JobState.FAILED, id="2", error=TuningError(code="something new", message="")))
    metrics.job_changed(job(JobState.SUCCEEDED, id="3", result=TuningResult(published=False)))
    found = scrape(registry)
    assert found["softprompt_trainer_jobs_created_total"] == 1
    assert found["softprompt_trainer_queue_seconds_count"] == 1
    assert found["softprompt_trainer_queue_seconds_sum"] == 7
    assert found["softprompt_trainer_jobs_ended_total code= state=SUCCEEDED"] == 2
    assert found["softprompt_trainer_jobs_ended_total code=OTHER state=FAILED"] == 1
    assert found["softprompt_trainer_versions_published_total"] == 1
    assert found["softprompt_trainer_versions_gated_total"] == 1
    assert found["softprompt_trainer_job_seconds_sum state=SUCCEEDED"] >= 60


def test_training_is_counted() -> None:
    registry = CollectorRegistry()
    metrics = TrainerMetrics(registry)
    metrics.training_event(Started("1", 1, statistics=None, step=0))  # type: ignore[arg-type]
    for step in (1, 2):
        metrics.training_event(
            StepDone("1", 1, step, 10, 0.5, 1.0, 0.01, num_examples=16, num_tokens=500, step_seconds=0.2)
        )
    metrics.training_event(Evaluated("1", 1, 2, {"loss": 0.4, "accuracy": 0.9}, is_best=True))
    metrics.training_event(Evaluated("1", 1, 2, {}, is_best=False))
    metrics.training_event(Checkpointed("1", 1, 2, b"12345"))
    metrics.training_event(Failed("1", 1, "NAN_LOSS", ""))
    metrics.publish_failed(job(JobState.RUNNING))
    for _ in range(2):
        metrics.worker_launched("tiny")
        metrics.worker_changed("tiny", None, WorkerState.PENDING)
    metrics.worker_changed("tiny", WorkerState.PENDING, WorkerState.STARTING)
    metrics.worker_changed("tiny", WorkerState.STARTING, None)
    metrics.launch_failed("tiny", LaunchFailure.TIMEOUT)
    metrics.worker_ended("tiny", "failed")
    metrics.set_oldest_queued({"tiny": 70.0, "gone": 5.0})
    metrics.set_oldest_queued({"tiny": 80.0})
    metrics.set_job_counts({JobState.QUEUED: 3})
    metrics.set_store_reachable(True)
    found = scrape(registry)
    expected = {
        "softprompt_trainer_step_seconds_count": 2,
        "softprompt_trainer_step_loss_sum": 1.0,
        "softprompt_trainer_examples_trained_total": 32,
        "softprompt_trainer_tokens_trained_total": 1000,
        "softprompt_trainer_evaluations_total": 2,
        "softprompt_trainer_evaluation_loss_sum": 0.4,
        "softprompt_trainer_checkpoints_total": 1,
        "softprompt_trainer_checkpoint_bytes_total": 5,
        "softprompt_trainer_attempt_failures_total code=NAN_LOSS": 1,
        "softprompt_trainer_publish_failures_total": 1,
        "softprompt_trainer_workers base_model=tiny state=pending": 1,
        "softprompt_trainer_workers base_model=tiny state=starting": 0,
        "softprompt_trainer_workers base_model=tiny state=ready": None,
        "softprompt_trainer_workers_ended_total base_model=tiny reason=failed": 1,
        "softprompt_trainer_launch_failures_total base_model=tiny reason=timeout": 1,
        "softprompt_trainer_oldest_queued_seconds base_model=tiny": 80,
        "softprompt_trainer_oldest_queued_seconds base_model=gone": 0,
        "softprompt_trainer_jobs state=QUEUED": 3,
        "softprompt_trainer_jobs state=RUNNING": 0,
        "softprompt_trainer_store_reachable": 1,
    }
    assert {name: found.get(name) for name in expected} == expected


def test_a_worker_s_memory_is_exported_as_long_as_it_lives() -> None:
    registry = CollectorRegistry()
    metrics = TrainerMetrics(registry, ["m"])
    metrics.worker_measured("m", "w-1", WorkerMemory(1, 2, 300))
    metrics.worker_measured("m", "w-2", WorkerMemory(1, 2, 400, 500, 0.75))
    series = {name: value for name, value in scrape(registry).items() if name.startswith("softprompt_trainer_worker_")}
    assert sorted(series.values()) == [0.75, 300, 400, 500]
    for worker in ("w-1", "w-2", "w-3"):
        metrics.worker_measured("m", worker, None)
    assert not [name for name in scrape(registry) if name.startswith("softprompt_trainer_worker_")]
