"""Settings of the queue, the placement on workers, retries and publication.

`trainer_service.config` fills them in; nothing here reads the environment.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class JobsConfig:
    """Limits and intervals of the job manager."""

    max_queued_jobs: int = 10_000
    """Longest queue; further jobs are refused with RESOURCE_EXHAUSTED."""
    max_active_jobs_per_caller: int = 5_000
    """Most jobs of one caller that have not ended."""
    max_workers: int = 1
    max_jobs_per_worker: int = 8
    """Most jobs that share one cohort."""
    worker_idle_seconds: float = 300.0
    """A worker without jobs is stopped after this time, so that a cluster can shrink."""
    poll_seconds: float = 2.0
    """Longest wait of a worker before it answers a long poll."""
    poll_pause_seconds: float = 0.05
    """Pause between two polls of a worker, so that one poll reports several quick steps."""
    heartbeat_seconds: float = 60.0
    """A worker that doesn't answer a poll within this time is killed and its jobs are queued again."""
    step_seconds: float = 900.0
    """A worker that spends longer than this on one step hangs: it is killed and its jobs are queued again. A stop may
    take twice as long, because it waits for the current step and is reported at the end of the next one.
    """
    launch_seconds: float = 900.0
    """Longest wait for a worker to start and load its base model (a cluster may have to add a node first)."""
    lease_seconds: float = 60.0
    """A replica that doesn't renew its leases within this time loses its jobs to other replicas."""
    progress_seconds: float = 1.0
    """Shortest time between two stored progress events of a job."""
    tick_seconds: float = 1.0
    """Longest pause of the dispatcher between two rounds; changes wake it earlier."""
    max_infrastructure_failures: int = 5
    """Attempts in a row without a checkpoint that may be lost to dead workers; one more fails the job with WORKER_LOST.
    """
    retry_first_seconds: float = 1.0
    retry_max_seconds: float = 120.0
    max_model_failures: int = 5
    """Failed loads in a row after which a base model counts as broken and its waiting jobs fail."""
    broken_model_seconds: float = 600.0
    """Shortest time for which loads must have failed before a base model counts as broken; also the longest pause
    before a broken model with waiting jobs is tried again.
    """
    max_publish_seconds: float = 7 * 24 * 3600.0
    """How long a trained job waits for an unavailable prompt store before it fails with PUBLISH_FAILED."""


def retry_delay_seconds(failures: int, first_seconds: float, max_seconds: float) -> float:
    """Back-off after a number of failures (from 1): doubles with each failure up to `max_seconds`."""
    return float(min(max_seconds, first_seconds * 2 ** min(failures - 1, 30)))
