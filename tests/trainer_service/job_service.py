"""A whole job manager on real stores (SQLite file, local directory), with workers that are threads of the test."""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy import update

from shared.errors import NotFound
from shared.model.models_file import ModelsFile
from shared.store.local import LocalBackend
from shared.store.store import PromptStore
from tests.trainer_service.builders import effective_spec
from tests.trainer_service.local_pool import LocalPool
from tests.trainer_service.scripted import ScriptedTrainer
from trainer_service.cluster.interface import WorkerPool
from trainer_service.database import schema
from trainer_service.dispatch.manager import JobManager
from trainer_service.jobs.admission import SpecAdmission
from trainer_service.jobs.config import JobsConfig
from trainer_service.jobs.model import EffectiveSpec, Job, StoredSpec
from trainer_service.jobs.states import JobState
from trainer_service.jobs.store.files import files_for
from trainer_service.jobs.store.job_store import JobStore
from trainer_service.pools import TrainerPools
from trainer_service.training.events import DatasetFile

FAST = JobsConfig(
    worker_idle_seconds=60,
    poll_seconds=0.5,
    heartbeat_seconds=600,
    launch_seconds=600,
    progress_seconds=0.01,
    tick_seconds=0.05,
    retry_first_seconds=0.02,
    retry_max_seconds=0.1,
)


_PATIENCE_SECONDS = 600.0
"""Time limit of the stores, which only one that hangs exceeds."""


class Examples:
    """Datasets by name, in files; a dataset's name says what its inputs begin with."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def file(self, name: str) -> DatasetFile:
        if name == "datasets/gone":
            raise NotFound("dataset", name)
        first = name.removeprefix("datasets/")
        data = "".join(
            json.dumps({"input": f"{first} {line}", "output": "yes"}) + "\n" for line in range(1, 13)
        ).encode()
        digest = hashlib.sha256(data).hexdigest()
        self._directory.mkdir(exist_ok=True)
        path = self._directory / f"sha256-{digest}.jsonl"
        if not path.exists():
            path.write_bytes(data)
        return DatasetFile(digest, str(path), len(data))


class AdmitAll(SpecAdmission):
    """Every spec is trained for as many steps as it asks for."""

    def __init__(self, base: EffectiveSpec) -> None:
        self.base = base

    async def check(self, spec: StoredSpec, unstored: object = None) -> EffectiveSpec:
        asked = spec.hyperparameters
        given = {name: value for name, value in vars(asked).items() if value is not None}
        hyperparameters = self.base.training.hyperparameters.model_copy(update=given)
        changes: dict[str, Any] = {
            "training": self.base.training.model_copy(update={"hyperparameters": hyperparameters})
        }
        if spec.max_runtime_seconds is not None:
            changes["max_runtime_seconds"] = spec.max_runtime_seconds
        return self.base.model_copy(update=changes)

    async def check_form(self, spec: StoredSpec) -> None:
        """Accepts every spec."""


def expire_leases(store: JobStore, owner: str) -> None:
    """As if the owner had been away for longer than its lease, which is too long to expire on a slow machine.

    `owner`: a part of its name.
    """
    with store.database.write() as connection:
        for table in (schema.jobs, schema.worker_slots):
            connection.execute(update(table).where(table.c.owner.contains(owner)).values(lease_until=0))


class Service:
    """Successive trainers on the same directory: `start`, `crash` or `drain`, `start` again."""

    def __init__(self, directory: Path, base: EffectiveSpec | None = None) -> None:
        self.directory = directory
        self.base = base or effective_spec()
        self.trainers: list[ScriptedTrainer] = []
        self.finish = threading.Event()
        """Set it to let jobs with inputs `forever` end."""
        self.config = FAST
        self.url = f"sqlite:///{directory / 'jobs.sqlite3'}"
        self.models = ModelsFile()
        self.pool: Any = None
        self.prompt_store: Any = None
        self.manager: JobManager = None  # type: ignore[assignment]

    async def start(self, pool: WorkerPool | None = None, prompt_store: Any = None, **config: Any) -> JobManager:
        self.config = self.config.model_copy(update=config)
        self.admission = AdmitAll(self.base)
        store = JobStore.open(self.url, timeout_seconds=_PATIENCE_SECONDS)
        self.store = store
        self.prompt_store = prompt_store or PromptStore(LocalBackend(self.directory / "prompts"))
        self.pool = pool or LocalPool(self._load)
        self.manager = JobManager(
            store,
            self.admission,
            Examples(self.directory / "datasets").file,
            self.prompt_store,
            self.pool,
            self.config,
            files=files_for(store.database, self.directory / "checkpoints"),
            models=self.models,
            pools=TrainerPools(_PATIENCE_SECONDS, _PATIENCE_SECONDS),
        )
        await self.manager.start()
        return self.manager

    def _load(self, base_model: str) -> tuple[ScriptedTrainer, dict[str, str]]:
        self.trainers.append(ScriptedTrainer(finish=self.finish))
        return self.trainers[-1], {}

    def configure(self, **config: Any) -> None:
        """Changes settings of workers that start from now on."""
        object.__setattr__(self.manager._context, "config", self.config.model_copy(update=config))

    async def crash(self) -> None:
        """As if the process were killed: it makes no further call to the store and releases its lock."""
        await self.manager.abandon()
        self.manager = None  # type: ignore[assignment]

    async def drain(self, grace_seconds: float = 5) -> None:
        """Does nothing if it doesn't run."""
        if self.manager is not None:
            manager, self.manager = self.manager, None  # type: ignore[assignment]
            await manager.drain(grace_seconds)

    async def state(self, job_id: str, *states: JobState) -> Job:
        """Waits until the job is in one of these states. Fails at once if it ends in another state."""
        job = await self.until(job_id, lambda job: job.state in states or job.state.is_final)
        assert job.state in states, job.error or job.state
        return job

    async def until(self, job_id: str, condition: Callable[[Job], bool]) -> Job:
        """Looks less often the longer it waits, because a look takes the processor that the job needs."""
        pause_seconds = 0.01
        while not condition(job := await self.manager.get(job_id)):
            await asyncio.sleep(pause_seconds)
            pause_seconds = min(1.05 * pause_seconds, 0.1)
        return job

    def versions(self, prompt: str) -> list[int]:
        record = self.prompt_store.refresh().prompts.get(prompt)
        return sorted(record.versions) if record else []
