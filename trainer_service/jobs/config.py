"""Settings of the queue, the placement on workers, retries and publication.

`trainer_service.config` inherits them; nothing here reads the environment.
"""

from __future__ import annotations

from pydantic import Field

from trainer_service.cluster.settings import MaxWorkers


class JobsSettings(MaxWorkers):
    """Limits of the job manager that an operator sets."""

    max_jobs_per_worker: int = Field(default=8, ge=1, le=256)
    """Most jobs that share one worker's step; fewer if they don't fit into its measured memory."""
    worker_idle_seconds: float = Field(default=300, gt=0, le=86_400)
    """A worker without jobs is stopped after this time."""
    heartbeat_seconds: float = Field(default=60, gt=0, le=3_600)
    """A worker that does not answer within this time is killed, and its jobs continue on other workers."""
    step_seconds: float = Field(default=900, gt=0, le=86_400)
    """A worker that spends longer than this on one training step hangs: it is killed, and its jobs continue on other
    workers. A stop may take twice as long, because it waits for the current step and is reported after the next one.
    """
    launch_seconds: float = Field(default=900, gt=0, le=86_400)
    """Longest time from a worker's launch until its base model is loaded; a cluster may first have to add a node and
    pull an image.
    """
    lease_seconds: float = Field(default=60, ge=1, le=3_600)
    """With several trainers on PostgreSQL: a trainer that doesn't renew its leases within this time loses its jobs to
    the others.
    """
    max_infrastructure_failures: int = Field(default=5, ge=1, le=1_000)
    """A job fails with WORKER_LOST after more than this number of lost workers in a row without a checkpoint. Raise it
    if nodes are often taken away.
    """
    max_publish_seconds: float = Field(default=7 * 24 * 3600, gt=0, le=365 * 24 * 3600)
    """How long a trained job waits for an unavailable prompt store before it fails with PUBLISH_FAILED."""
    max_model_failures: int = Field(default=5, ge=1, le=1_000)
    """Failed loads of a base model in a row after which its waiting jobs fail with BASE_MODEL_FAILED."""
    broken_model_seconds: float = Field(default=600, gt=0, le=7 * 86_400)
    """Shortest time for which loads must have failed before jobs fail with BASE_MODEL_FAILED; also the longest pause
    before a broken base model with waiting jobs is tried again.
    """
    max_queued_jobs: int = Field(default=10_000, ge=1)
    """Most waiting jobs; further ones are refused with RESOURCE_EXHAUSTED."""
    max_active_jobs_per_caller: int = Field(default=5_000, ge=1)
    """Most jobs of one caller that have not ended; further ones are refused with RESOURCE_EXHAUSTED."""


class JobsConfig(JobsSettings):
    """Limits and intervals of the job manager, also those that no operator needs to set."""

    poll_seconds: float = 2.0
    """Longest wait of a worker before it answers a long poll."""
    poll_pause_seconds: float = 0.05
    """Pause between two polls of a worker, so that one poll reports several quick steps."""
    progress_seconds: float = 1.0
    """Shortest time between two stored progress events of a job."""
    tick_seconds: float = 1.0
    """Longest pause of the dispatcher between two rounds; changes wake it earlier."""
    retry_first_seconds: float = 1.0
    retry_max_seconds: float = 120.0


def retry_delay_seconds(failures: int, first_seconds: float, max_seconds: float) -> float:
    """Back-off after a number of failures (from 1): doubles with each failure up to `max_seconds`."""
    return float(min(max_seconds, first_seconds * 2 ** min(failures - 1, 30)))
