"""How jobs are queued, placed on workers, retried and published. Filled from the service's settings; no environment is
read here.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class JobsConfig:
    max_queued_jobs: int = 10_000
    """More are refused with RESOURCE_EXHAUSTED."""
    max_active_jobs_per_caller: int = 5_000
    """Jobs of one caller that have not ended."""
    max_workers: int = 1
    max_jobs_per_worker: int = 8
    """Jobs that share one cohort."""
    worker_idle_seconds: float = 300.0
    """A worker without jobs is stopped after that, so that a cluster can shrink."""
    poll_seconds: float = 2.0
    """A long poll of a worker answers after this at the latest."""
    poll_pause_seconds: float = 0.05
    """Between two polls of a worker: quick steps are told together."""
    heartbeat_seconds: float = 60.0
    """A worker that doesn't answer a poll for that long is killed and its jobs are queued again."""
    step_seconds: float = 900.0
    """A worker that answers, but spends longer than that on one step, hangs: it is killed and its jobs are queued
    again. A stop that was asked for has twice as long: it waits for the current step, and is told at the end of the
    next.
    """
    launch_seconds: float = 900.0
    """Longest wait for a worker to start and load its base model (a cluster may have to add a node first)."""
    lease_seconds: float = 60.0
    """A replica that doesn't renew its leases for that long has lost its jobs to the others."""
    progress_seconds: float = 1.0
    """Shortest time between two stored progress events of a job."""
    tick_seconds: float = 1.0
    """Longest pause of the dispatcher; it is woken earlier when something happens."""
    max_infrastructure_failures: int = 5
    """Attempts in a row that may be lost to dead workers, none getting to a checkpoint, before the job fails with
    WORKER_LOST.
    """
    retry_first_seconds: float = 1.0
    retry_max_seconds: float = 120.0
    max_model_failures: int = 5
    """Launches in a row that may fail because the base model can't be loaded, before it counts as broken and its
    waiting jobs fail.
    """
    broken_model_seconds: float = 600.0
    """But not before it has failed for that long. A broken base model is tried again after that pause, once somebody
    waits for it.
    """
    max_publish_seconds: float = 7 * 24 * 3600.0
    """A trained job waits that long for the prompt store to come back before it fails with PUBLISH_FAILED."""


def retry_delay_seconds(failures: int, first_seconds: float, max_seconds: float) -> float:
    """Back-off after the n-th infrastructure failure (n from 1): doubles up to a bound."""
    return float(min(max_seconds, first_seconds * 2 ** min(failures - 1, 30)))
