"""The trainer's settings, SOFTPROMPT_TRAINER_*, read once at start. Properties convert them for the parts."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator
from pydantic_settings import NoDecode

from shared.config import ConfigError, ServerSettings, settings_config
from shared.model.base_model import pick_device
from shared.model.models_file import ModelEntry, ModelsFile
from shared.process.user_cache import expanded
from shared.store.maintenance import MaintenanceSettings
from shared.values.hyperparameters import MAX_VIRTUAL_TOKENS
from trainer_service.base_models import BaseModelSource
from trainer_service.cluster.settings import WorkerSettings
from trainer_service.datasets.upload import UploadLimits
from trainer_service.jobs.config import JobsConfig, JobsSettings
from trainer_service.maintenance.retention import RetentionPolicy

STORE_SCHEMES = ("file", "memory", "s3", "gs", "az", "abfs", "abfss")


def _split_commas(value: object) -> object:
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


CommaSeparated = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split_commas)]


class TrainerSettings(ServerSettings, WorkerSettings, JobsSettings, UploadLimits, RetentionPolicy, MaintenanceSettings):
    """All settings of the trainer. `--help` shows the docstrings of the fields."""

    model_config = settings_config("SOFTPROMPT_TRAINER_")

    models_file: Path | None = None
    """JSON file of base models with their resources (docs/models.md). Its models are trained besides those of
    base_models, and what it says of a model overrides the settings. Changed resources hold from the next worker on; new
    models need a restart.
    """
    base_models: CommaSeparated = Field(default=(), validate_default=True)
    """Base models to train prompts for: directories or hub ids, comma-separated, each optionally as ID=...; the first
    is the default. Required without a models file.
    """
    max_proof_model_bytes: int = Field(default=1 << 30, ge=0)
    """Largest base model, in bytes of weights, for which this trainer makes golden records of an import without any: a
    separate process loads the weights for some seconds. 0: never.
    """
    proof_seconds: float = Field(default=120, gt=0, le=3_600)
    """Time limit of that process; if it takes longer, the import gets no golden records."""
    data_dir: Path = Path("softprompt-data")
    """Directory for jobs, checkpoints and datasets, and for prompts unless store_url is set. Created if it doesn't
    exist.
    """
    store_url: str = ""
    """Prompt store: a directory, or a URL of an object store (s3://bucket/prefix). Empty: `prompts` in the data
    directory.
    """
    store_timeout_seconds: float = Field(default=30, ge=0.1, le=600)
    """Time limit of each request to the prompt store; a slower store counts as unavailable."""
    store_maintenance_seconds: float = Field(default=3600, ge=0, le=30 * 24 * 3600)
    """Mean time between two maintenance rounds of the prompt store, which remove old versions, log entries and unused
    blobs. 0: this trainer does none.
    """
    usage_seconds: float = Field(default=10, ge=0.1, le=3600)
    """Mean time between two rounds that add the replicas' usage to the job database and look at budgets."""
    usage_days: float = Field(default=400, ge=0, le=36_500)
    """How long usage by hour is kept; 0: forever."""
    database_url: str = ""
    """Job database as an SQLAlchemy URL. Empty: SQLite in the data directory."""
    database_timeout_seconds: float = Field(default=15, ge=0.1, le=600)
    """Time limit of each statement and each request to the job database; a slower database counts as unavailable."""
    dataset_roots: CommaSeparated = ()
    """Directories, comma-separated, under which callers may name datasets as file:// URIs. Empty: no URIs."""
    ray_address: str = ""
    """Ray cluster to use, for example ray-head:6379. Empty: Ray starts on this machine and ends with the service."""
    webhooks_file: Path | None = None
    """JSON file with the endpoints that get ended jobs, failed gates, versions, aliases and refusals. It is read again
    when it changes.
    """
    webhook_attempts: int = Field(default=16, ge=1, le=100)
    """Attempts to deliver an event to an endpoint before it becomes a dead letter. The pauses between them double from
    5 seconds to 6 hours: 16 attempts take about a day.
    """
    watch_heartbeat_seconds: float = Field(default=20, ge=0.05, le=3_600)
    """Longest silence of a watch of a job or of prompts before it sends a heartbeat. It must be shorter than the idle
    limit of gateways between the trainer and its clients.
    """
    max_runtime_seconds: float = Field(default=24 * 3600, gt=0)
    """Longest time that one job may spend on workers."""
    max_virtual_tokens: int = Field(default=512, ge=1, le=MAX_VIRTUAL_TOKENS)
    """Most virtual tokens of a soft prompt."""
    max_length: int = Field(default=4096, ge=0)
    """Longest training sequence of virtual tokens, input and target; set it to the limit of the replicas
    (SOFTPROMPT_INFERENCE_MAX_LENGTH). The base model's context is an upper limit. 0: the base model's context.
    """
    max_dataset_bytes_per_tenant: int = Field(default=50 * 10**9, ge=0)
    """Most bytes of one tenant's stored datasets; further ones are refused with RESOURCE_EXHAUSTED. 0: no limit. The
    callers file can set another limit for a tenant (dataset_bytes).
    """
    retention_seconds: float = Field(default=300, ge=0, le=30 * 24 * 3600)
    """Mean time between two retention rounds, which remove old jobs, datasets and events. 0: this trainer does none."""

    @field_validator("base_models")
    @classmethod
    def _base_models_parse(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if not value and info.data.get("models_file") is None:
            raise ValueError("must have at least 1 item, or SOFTPROMPT_TRAINER_MODELS_FILE must be set")
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
            raise ValueError(f"{str(value)!r} must be a directory that this process can write or create")
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
            # The value is not shown because it may contain a password.
            raise ValueError("must look like sqlite:///FILE or postgresql://USER@HOST/DATABASE")
        return value

    @field_validator("dataset_roots")
    @classmethod
    def _dataset_roots_exist(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for root in value:
            if not (Path(root).is_absolute() and Path(root).is_dir()):
                raise ValueError(f"{root!r} must be an absolute path of an existing directory")
        return value

    def trains_on_gpu(self, base_model: str) -> bool:
        """Whether workers of the base model compute on GPUs: by the models file, else by `device`; with `auto`, whether
        this machine has one.
        """
        if (num_gpus := self.models.workers(base_model).num_gpus) is not None:
            return num_gpus > 0
        return self.device == "cuda" or (self.device == "auto" and pick_device("auto").type == "cuda")

    @property
    def sources(self) -> tuple[BaseModelSource, ...]:
        """The base models with their ids, those of the setting before those of the models file."""
        named = {source.id: source for source in map(BaseModelSource.parse, self.base_models)}
        listed = {id: BaseModelSource.parse(f"{id}={entry.source}") for id, entry in self.models.entries.items()}
        return tuple((named | listed).values())

    @cached_property
    def models(self) -> ModelsFile:
        """The models file, read at the first use. Raises ConfigError if it can't be used."""
        try:
            return ModelsFile(self.models_file, self._check_models)
        except ConfigError as error:
            raise ConfigError(f"SOFTPROMPT_TRAINER_MODELS_FILE: {error}") from None

    def _check_models(self, entries: Mapping[str, ModelEntry]) -> None:
        kept = {id: entry.workers.least for id, entry in entries.items() if entry.workers.least}
        if sum(kept.values()) > self.max_workers:
            named = ", ".join(f"{id} {least}" for id, least in kept.items())
            raise ConfigError(
                f"{self.models_file}: workers.least of all models is {sum(kept.values())} together ({named}), "
                f"SOFTPROMPT_TRAINER_MAX_WORKERS is {self.max_workers}"
            )

    @property
    def resolved_store_url(self) -> str:
        """URL or directory of the prompt store."""
        return self.store_url or str(self.data_dir / "prompts")

    @property
    def resolved_database_url(self) -> str:
        """URL of the job database."""
        return self.database_url or f"sqlite:///{self.data_dir / 'jobs.sqlite3'}"

    @property
    def datasets_dir(self) -> Path:
        """Directory of the stored datasets."""
        return self.data_dir / "datasets"

    @property
    def checkpoints_dir(self) -> Path:
        """Directory of checkpoints."""
        return self.data_dir / "checkpoints"

    @property
    def jobs(self) -> JobsConfig:
        """The settings of the job manager."""
        return JobsConfig.of(self)
