"""The trainer's settings, SOFTPROMPT_TRAINER_*: read once, at start. What a part needs is handed to it in that part's
own words.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator
from pydantic_settings import NoDecode

from shared.config import ServerSettings, settings_config
from shared.model.base_model import Device, DType, pick_device
from shared.process.user_cache import expanded
from shared.prompt.soft_prompt import MAX_VIRTUAL_TOKENS
from shared.store.garbage import GRACE_SECONDS
from shared.store.maintenance import MaintenancePolicy
from trainer_service.base_models import BaseModelSource
from trainer_service.datasets.upload import UploadLimits
from trainer_service.jobs.config import JobsConfig
from trainer_service.maintenance.retention import RetentionPolicy

STORE_SCHEMES = ("file", "memory", "s3", "gs", "az", "abfs", "abfss")


def _split_commas(value: object) -> object:
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


CommaSeparated = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split_commas)]


class TrainerSettings(ServerSettings):
    """Everything that an operator may set."""

    model_config = settings_config("SOFTPROMPT_TRAINER_")

    base_models: CommaSeparated = Field(min_length=1)
    """Base models to train prompts for: directories or hub ids, comma-separated, each optionally as ID=...; the first
    is the default.
    """
    dtype: DType = "auto"
    """What workers compute in: auto (bfloat16 where the hardware is fast at it), float32, bfloat16 or float16."""
    device: Device = "auto"
    """What workers compute on: auto, cpu or cuda."""
    max_proof_model_bytes: int = Field(default=1 << 30, ge=0)
    """Of an import that brings no golden records, this trainer makes some if the base model's weights take at most so
    many bytes: a process of its own loads them for some seconds. 0: never.
    """
    proof_seconds: float = Field(default=120, gt=0, le=3_600)
    """Time limit of that process; an import whose records take longer goes without."""
    data_dir: Path = Path("softprompt-data")
    """Directory for jobs, checkpoints and datasets, and for prompts unless store_url says otherwise. Made if it isn't
    there.
    """
    store_url: str = ""
    """Prompt store: a directory, or a URL of an object store (s3://bucket/prefix). Empty: `prompts` in the data
    directory.
    """
    store_timeout_seconds: float = Field(default=30, ge=0.1, le=600)
    """Time limit of each request to the prompt store; a store that takes longer is away."""
    keep_versions: int = Field(default=0, ge=0)
    """Retention: of each prompt, keep so many of the newest versions and every one that an alias names; delete the
    others. 0: keep all.
    """
    store_maintenance_seconds: float = Field(default=3600, ge=0, le=30 * 24 * 3600)
    """Mean time between two rounds of tidying the prompt store: retention, old log entries, unwanted blobs. 0: none by
    this trainer.
    """
    blob_grace_seconds: float = Field(default=GRACE_SECONDS, ge=60, le=365 * 24 * 3600)
    """A blob that no version names is removed after that; longer than a publication or a replica's absence may last."""
    database_url: str = ""
    """Job database as an SQLAlchemy URL. Empty: SQLite in the data directory."""
    database_timeout_seconds: float = Field(default=15, ge=0.1, le=600)
    """Time limit of each statement, and of each request to the job database; one that takes longer is away."""
    dataset_roots: CommaSeparated = ()
    """Directories, comma-separated, under which callers may name datasets as file:// URIs. Empty: no URIs."""
    ray_address: str = ""
    """Ray cluster to use, for example ray-head:6379. Empty: Ray is started inside this machine and ends with the
    service.
    """
    watch_heartbeat_seconds: float = Field(default=20, ge=0.05, le=3_600)
    """A watch of a job or of the prompts that has nothing to tell says at least that often that it is alive. Shorter
    than what gateways between here and the clients take for an idle stream.
    """
    max_workers: int = Field(default=1, ge=1, le=1024)
    """Most workers at once, of all trainers that share a job database; a worker takes a GPU, or this machine's CPU
    cores.
    """
    gpus_per_worker: int = Field(default=1, ge=1, le=64)
    """GPUs of one worker: more than one for a base model that needs them; its layers are spread over them."""
    cpus_per_worker: int = Field(default=0, ge=0, le=1024)
    """CPU cores of one worker that has no GPU, and threads of each worker. 0: the processors that the container may
    use, divided by max_workers; in another Ray cluster two, or one where the worker's container has a CPU quota below
    two.
    """
    max_jobs_per_worker: int = Field(default=8, ge=1, le=256)
    """Most jobs that share one worker's step; fewer where its memory, as measured, holds no more."""
    worker_idle_seconds: float = Field(default=300, gt=0, le=86_400)
    """A worker without jobs is stopped after that."""
    heartbeat_seconds: float = Field(default=60, gt=0, le=3_600)
    """A worker that does not answer for that long is killed, and its jobs go on elsewhere."""
    step_seconds: float = Field(default=900, gt=0, le=86_400)
    """A worker that answers, but spends longer than that on one training step, hangs: it is killed, and its jobs go on
    elsewhere.
    """
    launch_seconds: float = Field(default=900, gt=0, le=86_400)
    """Longest time from a worker's launch until its base model is loaded: a cluster may first have to add a node, which
    pulls an image.
    """
    lease_seconds: float = Field(default=60, ge=1, le=3_600)
    """With several trainers on PostgreSQL: one that is gone, or does not renew its leases for that long, loses its jobs
    to the others.
    """
    max_infrastructure_failures: int = Field(default=5, ge=1, le=1_000)
    """A job fails with WORKER_LOST when it has lost more workers than that in a row, none of which got to a checkpoint.
    Raise it where nodes are taken away often.
    """
    max_publish_seconds: float = Field(default=7 * 24 * 3600, gt=0, le=365 * 24 * 3600)
    """A trained job waits that long for the prompt store to come back; then it fails with PUBLISH_FAILED."""
    max_model_failures: int = Field(default=5, ge=1, le=1_000)
    """Launches in a row that may fail because a base model can't be loaded, before its waiting jobs fail with
    BASE_MODEL_FAILED.
    """
    broken_model_seconds: float = Field(default=600, gt=0, le=7 * 86_400)
    """But not before it has failed for that long. Then it is tried again after that pause, once a job waits for it."""
    checkpoint_seconds: float = Field(default=10, gt=0, le=3_600)
    """Time between two checkpoints of a job."""
    max_queued_jobs: int = Field(default=10_000, ge=1)
    """Most jobs that wait; further ones are refused with RESOURCE_EXHAUSTED."""
    max_active_jobs_per_caller: int = Field(default=5_000, ge=1)
    """Most jobs of one caller that have not ended; further ones are refused with RESOURCE_EXHAUSTED."""
    max_runtime_seconds: float = Field(default=24 * 3600, gt=0)
    """Longest time that one job may spend on workers."""
    max_virtual_tokens: int = Field(default=512, ge=1, le=MAX_VIRTUAL_TOKENS)
    """Most virtual tokens of a soft prompt."""
    max_length: int = Field(default=4096, ge=0)
    """Longest sequence of virtual tokens, input and target that is trained: what the replicas take
    (SOFTPROMPT_INFERENCE_MAX_LENGTH), and never more than the base model takes. 0: what the base model takes.
    """
    max_examples: int = Field(default=100_000, ge=1)
    """Most examples of a dataset."""
    max_dataset_bytes: int = Field(default=256 << 20, ge=1 << 10)
    """Most bytes of a dataset."""
    max_line_bytes: int = Field(default=1 << 20, ge=1 << 8)
    """Most bytes of one line of a dataset."""
    max_dataset_bytes_per_tenant: int = Field(default=50 * 10**9, ge=0)
    """Most bytes of one tenant's stored datasets; further ones are refused with RESOURCE_EXHAUSTED. 0: no limit. A
    tenant of the callers file may have a limit of its own (dataset_bytes).
    """
    unused_dataset_days: float = Field(default=30, ge=0)
    """A dataset is removed after that many days without use, unless a job needs it that has not ended. 0: kept until
    its tenant deletes it. A tenant of the callers file may have days of its own, as for ended_job_days.
    """
    ended_job_days: float = Field(default=90, ge=0)
    """An ended job is removed after that many days, with its events and its kept checkpoint; versions stay. 0: kept
    until it is deleted.
    """
    retention_seconds: float = Field(default=300, ge=0, le=30 * 24 * 3600)
    """Mean time between two rounds of removing what is old: jobs, datasets, events of ended jobs. 0: none by this
    trainer.
    """

    @field_validator("base_models")
    @classmethod
    def _base_models_parse(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        ids = [BaseModelSource.parse(text).id for text in value]
        if len(set(ids)) != len(ids):
            raise ValueError(f"two base models have the same id: {', '.join(ids)}; write ID=directory")
        return value

    @field_validator("data_dir")
    @classmethod
    def _data_dir_can_be_used(cls, value: Path) -> Path:
        directory = expanded(value).absolute()
        existing = next(path for path in (directory, *directory.parents) if path.exists())
        if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
            raise ValueError(f"{str(value)!r} must be a directory that this process can write, or make")
        return directory

    @field_validator("store_url")
    @classmethod
    def _store_url_is_known(cls, value: str) -> str:
        scheme, separator, _ = value.partition("://")
        if separator and scheme not in STORE_SCHEMES:
            raise ValueError(f"{value!r} must be a directory or a URL with one of {', '.join(STORE_SCHEMES)}")
        return value

    @field_validator("database_url")
    @classmethod
    def _database_url_is_known(cls, value: str) -> str:
        if value and not value.startswith(("sqlite:///", "postgresql://", "postgresql+psycopg://")):
            raise ValueError(
                "must look like sqlite:///FILE or postgresql://USER@HOST/DATABASE"
            )  # it may hold a password: not shown
        return value

    @field_validator("dataset_roots")
    @classmethod
    def _dataset_roots_exist(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for root in value:
            if not (Path(root).is_absolute() and Path(root).is_dir()):
                raise ValueError(f"{root!r} must be an absolute path of an existing directory")
        return value

    @field_validator("max_line_bytes")
    @classmethod
    def _lines_fit_datasets(cls, value: int, info: ValidationInfo) -> int:
        if value > info.data.get("max_dataset_bytes", value):
            raise ValueError(f"a line can't be longer than a dataset: at most {info.data['max_dataset_bytes']}")
        return value

    @property
    def expects_gpu(self) -> bool:
        """Whether workers compute on GPUs; with `auto`, as this machine does."""
        return self.device == "cuda" or (self.device == "auto" and pick_device("auto").type == "cuda")

    @property
    def sources(self) -> tuple[BaseModelSource, ...]:
        return tuple(BaseModelSource.parse(text) for text in self.base_models)

    @property
    def resolved_store_url(self) -> str:
        return self.store_url or str(self.data_dir / "prompts")

    @property
    def maintenance(self) -> MaintenancePolicy:
        return MaintenancePolicy(keep_versions=self.keep_versions, blob_grace_seconds=self.blob_grace_seconds)

    @property
    def resolved_database_url(self) -> str:
        return self.database_url or f"sqlite:///{self.data_dir / 'jobs.sqlite3'}"

    @property
    def datasets_dir(self) -> Path:
        return self.data_dir / "datasets"

    @property
    def checkpoints_dir(self) -> Path:
        return self.data_dir / "checkpoints"

    @property
    def upload_limits(self) -> UploadLimits:
        return UploadLimits(
            max_examples=self.max_examples, max_dataset_bytes=self.max_dataset_bytes, max_line_bytes=self.max_line_bytes
        )

    @property
    def retention(self) -> RetentionPolicy:
        return RetentionPolicy(ended_job_days=self.ended_job_days, unused_dataset_days=self.unused_dataset_days)

    @property
    def jobs(self) -> JobsConfig:
        return JobsConfig(
            max_queued_jobs=self.max_queued_jobs,
            max_active_jobs_per_caller=self.max_active_jobs_per_caller,
            max_workers=self.max_workers,
            max_jobs_per_worker=self.max_jobs_per_worker,
            worker_idle_seconds=self.worker_idle_seconds,
            heartbeat_seconds=self.heartbeat_seconds,
            step_seconds=self.step_seconds,
            launch_seconds=self.launch_seconds,
            lease_seconds=self.lease_seconds,
            max_infrastructure_failures=self.max_infrastructure_failures,
            max_publish_seconds=self.max_publish_seconds,
            max_model_failures=self.max_model_failures,
            broken_model_seconds=self.broken_model_seconds,
        )
