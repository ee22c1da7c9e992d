"""Records the end of each job in the audit log. Most jobs end without a call: by success, an error, their deadline or
the runtime limit.
"""

from __future__ import annotations

from collections import OrderedDict

from shared.security import audit
from trainer_service.cluster.interface import WorkerMemory
from trainer_service.cluster.worker_state import LaunchFailure, WorkerState
from trainer_service.jobs.context import JobsObserver
from trainer_service.jobs.model import Job
from trainer_service.training.events import TrainingEvent

ACTION = "end"
_MAX_REMEMBERED = 10_000


class JobAudit:
    """A `JobsObserver` that audits ended jobs and forwards every event to `observer`.

    The same end may be reported several times; each process writes one line, as long as the job is among the last
    10,000 that ended.
    """

    def __init__(self, observer: JobsObserver) -> None:
        self._observer = observer
        self._ended: OrderedDict[str, None] = OrderedDict()

    def job_changed(self, job: Job) -> None:
        if job.state.is_final and job.id not in self._ended:
            self._ended[job.id] = None
            if len(self._ended) > _MAX_REMEMBERED:
                self._ended.popitem(last=False)
            error = {"error": job.error.code} if job.error else {}
            audit.record(
                ACTION,
                "OK",
                {"caller": job.caller, "prompt": job.spec.prompt, "job": job.id, "state": job.state.value, **error},
            )
        self._observer.job_changed(job)

    def training_event(self, event: TrainingEvent) -> None:
        self._observer.training_event(event)

    def worker_launched(self, base_model: str) -> None:
        self._observer.worker_launched(base_model)

    def worker_changed(self, base_model: str, before: WorkerState | None, after: WorkerState | None) -> None:
        self._observer.worker_changed(base_model, before, after)

    def worker_measured(self, base_model: str, worker: str, memory: WorkerMemory | None) -> None:
        self._observer.worker_measured(base_model, worker, memory)

    def worker_ended(self, base_model: str, reason: str) -> None:
        self._observer.worker_ended(base_model, reason)

    def launch_failed(self, base_model: str, reason: LaunchFailure) -> None:
        self._observer.launch_failed(base_model, reason)

    def publish_failed(self, job: Job) -> None:
        self._observer.publish_failed(job)
