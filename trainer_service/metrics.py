"""The trainer's Prometheus metrics, fed by the job manager's observer. The only module of this service that imports
Prometheus.

Labels are bounded: states, ids of this trainer's base models and live workers, reasons, error codes, and budgets of the
callers file, never jobs or prompts. The loss of a single job is in its progress.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from shared.store.maintenance import MaintenanceReport
from shared.values.usage import BudgetStatus
from trainer_service.cluster.interface import WorkerMemory
from trainer_service.cluster.worker_state import LaunchFailure, WorkerEnd, WorkerState
from trainer_service.jobs.context import JobsObserver
from trainer_service.jobs.model import Job
from trainer_service.jobs.states import JobState
from trainer_service.maintenance.retention import RetentionReport
from trainer_service.maintenance.storage_usage import StorageUsage
from trainer_service.training.events import Checkpointed, Evaluated, Failed, StepDone, TrainingEvent

BASE_MODEL_STATES = ("available", "unavailable", "refused")
_STEP_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 30)
_WAIT_BUCKETS = (0.1, 0.5, 1, 5, 10, 30, 60, 300, 900, 3600, 4 * 3600, 24 * 3600)
_MAINTENANCE_BUCKETS = (0.01, 0.1, 0.5, 1, 5, 30, 60, 300, 1800)
_LOSS_BUCKETS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 1.5, 2, 3, 4, 6, 10)
_OTHER_ERROR = "OTHER"
_ERRORS = (
    "BAD_DATA",
    "BASE_MODEL_FAILED",
    "DEADLINE_EXCEEDED",
    "INTERNAL",
    "MAX_RUNTIME",
    "NAN_LOSS",
    "OUT_OF_MEMORY",
    "PUBLISH_FAILED",
    "WORKER_LOST",
    _OTHER_ERROR,
)


class TrainerMetrics(JobsObserver):
    """Methods are called on the event loop and never raise."""

    def __init__(
        self,
        registry: CollectorRegistry,
        base_models: Sequence[str] = (),
        record_end: Callable[[Job], None] = lambda job: None,
    ) -> None:
        """The series of these `base_models` (ids) are exported as 0 from the start, so that the first event counts as
        an increase. `record_end` gets each job that ended, once.
        """
        self._record_end = record_end

        def counter(name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
            return Counter(f"softprompt_trainer_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str, labels: tuple[str, ...] = ()) -> Gauge:
            return Gauge(f"softprompt_trainer_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...], labels: tuple[str, ...] = ()) -> Histogram:
            return Histogram(f"softprompt_trainer_{name}", text, labels, buckets=buckets, registry=registry)

        self._jobs = gauge("jobs", "Jobs by state, ended ones as long as they are kept.", ("state",))
        self._workers = gauge(
            "workers",
            "Workers by state: pending (the cluster has not placed it), starting (it loads the base model), ready.",
            ("base_model", "state"),
        )
        self._measured = {
            name: gauge(f"worker_{name}", about, ("base_model", "worker"))
            for name, about in (
                ("resident_bytes", "Memory of a worker's process on its machine."),
                ("device_bytes", "Memory that a worker's process holds on its GPUs."),
                ("device_busy_ratio", "Share of the recent time in which a worker's busiest GPU computed."),
            )
        }
        """Series of live workers only: each goes with its worker."""
        self._base_models = gauge(
            "base_models",
            "1 for the current state of a base model: available, unavailable (files missing or damaged) or refused.",
            ("base_model", "state"),
        )
        self._oldest_queued = gauge(
            "oldest_queued_seconds",
            "How long the oldest job that waits for a worker has been QUEUED; 0 if there is none.",
            ("base_model",),
        )
        self._created = counter("jobs_created", "Jobs accepted.")
        self._ended = counter("jobs_ended", "Jobs that ended, by state and error code.", ("state", "code"))
        self._queue_seconds = histogram(
            "queue_seconds", "Time from a job's creation to its first worker.", _WAIT_BUCKETS
        )
        self._job_seconds = histogram(
            "job_seconds", "Time from a job's creation to its end.", _WAIT_BUCKETS, ("state",)
        )
        self._step_seconds = histogram(
            "step_seconds", "Time of one cohort step, once for each job in it.", _STEP_BUCKETS
        )
        self._step_loss = histogram("step_loss", "Training loss of single steps.", _LOSS_BUCKETS)
        self._steps_skipped = counter("steps_skipped", "Steps skipped because the loss or gradient was not finite.")
        self._examples = counter("examples_trained", "Training examples seen.")
        self._tokens = counter("tokens_trained", "Text positions computed in training.")
        self._evaluations = counter("evaluations", "Held-out evaluations.")
        self._evaluation_loss = histogram("evaluation_loss", "Held-out loss of evaluations.", _LOSS_BUCKETS)
        self._checkpoints = counter("checkpoints", "Checkpoints taken.")
        self._checkpoint_bytes = counter("checkpoint_bytes", "Bytes of checkpoints taken.")
        self._published = counter("versions_published", "Prompt versions published by jobs.")
        self._gated = counter("versions_gated", "Trained prompts that were not published because of their gate.")
        self._store_reachable = gauge("store_reachable", "1 while the prompt store answers.")
        self._database_reachable = gauge("database_reachable", "1 while the job database answers.")
        self._maintenance = counter("store_maintenance_rounds", "Maintenance rounds of the prompt store.", ("outcome",))
        self._maintenance_seconds = histogram("store_maintenance_seconds", "Time of one round.", _MAINTENANCE_BUCKETS)
        self._tidied = counter("store_tidied", "Items that maintenance removed from the prompt store.", ("what",))
        self._retention = counter("retention_rounds", "Rounds that remove old jobs, events and datasets.", ("outcome",))
        self._retention_seconds = histogram("retention_seconds", "Time of one round.", _MAINTENANCE_BUCKETS)
        self._retired = counter("retention_removed", "Items that retention removed.", ("what",))
        self._disk = gauge("disk_bytes", "Total and free bytes of the data directory's file system.", ("kind",))
        self._stored = gauge("stored_bytes", "Bytes of datasets, of checkpoints and of the job database.", ("what",))
        self._publish_failures = counter("publish_failures", "Attempts to publish that failed and are repeated.")
        self._attempt_failures = counter("attempt_failures", "Attempts of jobs that failed on a worker.", ("code",))
        self._workers_launched = counter("workers_launched", "Workers started.", ("base_model",))
        self._workers_ended = counter("workers_ended", "Workers ended, by reason.", ("base_model", "reason"))
        self._launch_failures = counter(
            "launch_failures", "Workers that were never ready, by reason.", ("base_model", "reason")
        )
        self._webhook_attempts = counter("webhook_attempts", "Attempts to deliver an event to a webhook.", ("outcome",))
        self._webhooks = gauge(
            "webhook_deliveries",
            "Deliveries of webhooks that wait (pending), and dead letters of the last 30 days (dead).",
            ("state",),
        )
        self.set_webhooks(0, 0)
        self._usage_segments = counter("usage_segments", "Segments of usage, by outcome.", ("outcome",))
        self.usage_folded(0, 0, 0)
        self._budgets = gauge(
            "budget_used_ratio",
            "Used part of each budget in the callers file, in its current period; hard budgets refuse from 1 on.",
            ("tenant", "budget", "kind"),
        )
        self._states = _LatestStates()
        self._export_zeros(base_models)

    def _export_zeros(self, base_models: Sequence[str]) -> None:
        for code in _ERRORS:
            self._ended.labels(JobState.FAILED.value, code)
            self._attempt_failures.labels(code)
        for state in (JobState.SUCCEEDED, JobState.CANCELLED):
            self._ended.labels(state.value, "")
        for outcome in ("succeeded", "failed"):
            self._retention.labels(outcome)
        for outcome in ("delivered", "failed", "dead"):
            self._webhook_attempts.labels(outcome)
        self.set_job_counts({})
        for base_model in base_models:
            for model_state in BASE_MODEL_STATES:
                self._base_models.labels(base_model, model_state)
            self._oldest_queued.labels(base_model)
            self._workers_launched.labels(base_model)
            for worker_state in WorkerState:
                self._workers.labels(base_model, worker_state.value)
            for end in WorkerEnd:
                self._workers_ended.labels(base_model, end.value)
            for failure in LaunchFailure:
                self._launch_failures.labels(base_model, failure.value)

    def set_job_counts(self, counts: Mapping[JobState, int]) -> None:
        """Number of jobs by state from the job store, including other replicas' jobs."""
        for state in JobState:
            self._jobs.labels(state.value).set(counts.get(state, 0))

    def set_base_models(self, states: Mapping[str, str]) -> None:
        """The state of each base model by id, one of BASE_MODEL_STATES."""
        for base_model, current in states.items():
            for state in BASE_MODEL_STATES:
                self._base_models.labels(base_model, state).set(state == current)

    def set_oldest_queued(self, seconds: Mapping[str, float]) -> None:
        """Age of the oldest queued job by base model, from the job store; 0 for omitted base models."""
        for labels in [sample.labels for family in self._oldest_queued.collect() for sample in family.samples]:
            if labels["base_model"] not in seconds:
                self._oldest_queued.labels(**labels).set(0)
        for base_model, age in seconds.items():
            self._oldest_queued.labels(base_model).set(age)

    def set_store_reachable(self, reachable: bool) -> None:
        """Whether the prompt store answered the latest check."""
        self._store_reachable.set(reachable)

    def set_database_reachable(self, reachable: bool) -> None:
        """Whether the job database answered the latest check."""
        self._database_reachable.set(reachable)

    def job_changed(self, job: Job) -> None:
        before = self._states.replace(job.id, job.state)
        if job.state is before:
            return
        if job.state is JobState.QUEUED and before is None and job.attempt == 0:
            self._created.inc()
        if job.state is JobState.RUNNING and job.attempt == 1 and job.start_time is not None:
            self._queue_seconds.observe(_seconds(job.create_time, job.start_time))
        if job.state.is_final:
            self._record_end(job)
            self._job_ended(job)

    def _job_ended(self, job: Job) -> None:
        code = "" if job.error is None else _error_label(job.error.code)
        self._ended.labels(job.state.value, code).inc()
        self._job_seconds.labels(job.state.value).observe(_seconds(job.create_time, job.end_time or datetime.now(UTC)))
        if job.result is not None:
            (self._published if job.result.published else self._gated).inc()

    def training_event(self, event: TrainingEvent) -> None:
        match event:
            case StepDone():
                self._step_seconds.observe(event.step_seconds)
                if math.isfinite(event.loss):
                    self._step_loss.observe(event.loss)
                self._steps_skipped.inc(event.num_skipped)
                self._examples.inc(event.num_examples)
                self._tokens.inc(event.num_tokens)
            case Evaluated(metrics=metrics):
                self._evaluations.inc()
                if "loss" in metrics:
                    self._evaluation_loss.observe(metrics["loss"])
            case Checkpointed(data=data):
                self._checkpoints.inc()
                self._checkpoint_bytes.inc(len(data))
            case Failed(code=code):
                self._attempt_failures.labels(_error_label(code)).inc()

    def worker_launched(self, base_model: str) -> None:
        self._workers_launched.labels(base_model).inc()

    def worker_changed(self, base_model: str, before: WorkerState | None, after: WorkerState | None) -> None:
        if before is not None:
            self._workers.labels(base_model, before.value).dec()
        if after is not None:
            self._workers.labels(base_model, after.value).inc()

    def worker_measured(self, base_model: str, worker: str, memory: WorkerMemory | None) -> None:
        values = (None,) * 3 if memory is None else (memory.resident_bytes, memory.device_bytes, memory.device_busy)
        for gauge, value in zip(self._measured.values(), values, strict=True):
            if value is not None:
                gauge.labels(base_model, worker).set(value)
            elif memory is None:
                with suppress(KeyError):
                    gauge.remove(base_model, worker)

    def worker_ended(self, base_model: str, reason: str) -> None:
        self._workers_ended.labels(base_model, reason).inc()

    def launch_failed(self, base_model: str, reason: LaunchFailure) -> None:
        self._launch_failures.labels(base_model, reason.value).inc()

    def maintained(self, report: MaintenanceReport, seconds: float) -> None:
        """A maintenance round of the prompt store has ended."""
        self._maintenance.labels("failed" if report.failures else "succeeded").inc()
        self._maintenance_seconds.observe(seconds)
        self._tidied.labels("versions").inc(report.versions_deleted)
        self._tidied.labels("log_entries").inc(report.log_entries_removed)
        self._tidied.labels("blobs").inc(report.blobs_removed)
        self._tidied.labels("replicas").inc(report.replicas_forgotten)
        self._tidied.labels("leftovers").inc(report.leftovers_removed)

    def retained(self, report: RetentionReport, seconds: float) -> None:
        """A retention round has ended."""
        self._retention.labels("failed" if report.failures else "succeeded").inc()
        self._retention_seconds.observe(seconds)
        self._retired.labels("events").inc(report.events_removed)
        self._retired.labels("jobs").inc(report.jobs_removed)
        self._retired.labels("datasets").inc(report.datasets_removed)
        self._retired.labels("files").inc(report.files_removed)

    def set_storage(self, usage: StorageUsage) -> None:
        """What jobs, datasets and disks take now."""
        self._disk.labels("total").set(usage.disk_total)
        self._disk.labels("free").set(usage.disk_free)
        self._stored.labels("datasets").set(usage.datasets)
        self._stored.labels("checkpoints").set(usage.checkpoints)
        self._stored.labels("database").set(usage.database)

    def webhook_sent(self, outcome: str) -> None:
        """An attempt to deliver an event has ended: delivered, failed or dead."""
        self._webhook_attempts.labels(outcome).inc()

    def set_webhooks(self, pending: int, dead: int) -> None:
        """Deliveries that wait, and dead letters, of all trainers on this database."""
        self._webhooks.labels("pending").set(pending)
        self._webhooks.labels("dead").set(dead)

    def usage_folded(self, folded: int, refused: int, failed: int) -> None:
        """A round has added and refused segments of usage, and could not read or remove others."""
        self._usage_segments.labels("folded").inc(folded)
        self._usage_segments.labels("refused").inc(refused)
        self._usage_segments.labels("failed").inc(failed)

    def set_budgets(self, statuses: Sequence[BudgetStatus]) -> None:
        """The state of all budgets in the callers file."""
        self._budgets.clear()
        for status in statuses:
            kind = "hard" if status.is_hard else "soft"
            self._budgets.labels(status.tenant, status.name, kind).set(status.used / status.limit)

    def publish_failed(self, job: Job) -> None:
        self._publish_failures.inc()


_MOST_STATES = 20_000


class _LatestStates:
    """The last seen state of each of the latest jobs, so that a change is counted once."""

    def __init__(self) -> None:
        self._states: OrderedDict[str, JobState] = OrderedDict()

    def replace(self, job_id: str, state: JobState) -> JobState | None:
        before = self._states.pop(job_id, None)
        self._states[job_id] = state
        if len(self._states) > _MOST_STATES:
            self._states.popitem(last=False)
        return before


def _error_label(code: str) -> str:
    return code if code in _ERRORS else _OTHER_ERROR


def _seconds(start: datetime, end: datetime) -> float:
    return max(0.0, (end - start).total_seconds())
