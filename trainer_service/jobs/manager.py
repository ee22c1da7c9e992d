"""Tuning jobs for the service's front: create, look, watch, change. Behind it: the store, the dispatcher, the publisher."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from trainer_service.cluster.interface import WorkerPool
from trainer_service.jobs.config import JobsConfig
from trainer_service.jobs.model import EffectiveSpec, Job, JobCounts, JobEvent, JobFilter, JobPage, TuningSpec
from trainer_service.jobs.store import JobStore
from trainer_service.training.spec import Example


class Admission(Protocol):
    """Decides whether a spec can be trained here and fills in what it leaves open."""

    async def check(self, spec: TuningSpec) -> EffectiveSpec:
        """Raises InvalidInput naming fields, NotFound, or PreconditionFailed."""
        ...


class Datasets(Protocol):
    """Datasets by name. Called in a thread; may block."""

    def read(self, name: str) -> tuple[Example, ...]:
        """Raises NotFound, or DamagedBlob if the bytes don't match the name."""
        ...


class JobManager:
    """The service's jobs. Construct, `await start()`, use, `await drain(grace_seconds)`."""

    def __init__(
        self, store: JobStore, admission: Admission, datasets: Datasets, prompt_store: PromptStore, pool: WorkerPool, config: JobsConfig
    ) -> None: ...

    async def start(self) -> None:
        """Take back what a predecessor left RUNNING, then begin to place jobs on workers."""

    async def drain(self, grace_seconds: float) -> None:
        """Checkpoint running jobs, put them back to QUEUED, stop workers, close the store."""

    async def create(self, spec: TuningSpec, *, request_id: str = "", caller: str = "") -> Job:
        """Check, store as QUEUED, return. The same `request_id` of the same caller returns the job that it made; Conflict if the spec differs."""

    async def get(self, job_id: str) -> Job:
        """Raises NotFound."""

    async def list(self, filter: JobFilter, page_size: int, page_token: str = "") -> JobPage:
        """Newest first. Raises InvalidInput for a token that this service didn't make."""

    def watch(self, job_id: str, after: int = 0) -> AsyncIterator[JobEvent]:
        """Past events after number `after`, then each as it happens; ends after the one that ended the job. Raises NotFound."""

    async def cancel(self, job_id: str) -> Job:
        """CANCELLED at once if it isn't on a worker, else CANCELLING. A cancelled job is fine; PreconditionFailed if it ended otherwise."""

    async def pause(self, job_id: str) -> Job: ...

    async def resume(self, job_id: str) -> Job: ...

    async def delete(self, job_id: str) -> None:
        """Remove an ended job with its events. Raises PreconditionFailed if it hasn't ended."""

    async def counts(self) -> JobCounts: ...
