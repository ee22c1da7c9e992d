"""From a claimed job to a task that a worker can train: its datasets by digest, the matrices to start from and to
compare with, the checkpoint.

Each part comes from a system of its own and is fetched in that system's threads.
"""

from __future__ import annotations

from typing import Protocol

from shared.errors import NotFound, PreconditionFailed
from shared.names import parse_version_name
from shared.prompt.blob import decode_blob
from shared.prompt.soft_prompt import SoftPrompt
from shared.store.store import PromptStore
from trainer_service.jobs.model import Job
from trainer_service.jobs.sources import FIELD
from trainer_service.jobs.store.files import FileKind, JobFiles
from trainer_service.pools import TrainerPools
from trainer_service.training.checkpoint import best_prompt
from trainer_service.training.events import DatasetFile, TaskData, TrainingTask


class Datasets(Protocol):
    """Datasets by name; may block."""

    def file(self, name: str) -> DatasetFile:
        """Raises NotFound, or DamagedBlob if the bytes don't match the name."""
        ...


class Preparation:
    def __init__(self, datasets: Datasets, prompt_store: PromptStore, files: JobFiles, pools: TrainerPools) -> None:
        self._datasets, self._prompt_store, self._files, self._pools = datasets, prompt_store, files, pools

    async def make_task(self, job: Job) -> TrainingTask:
        """Raises Unavailable when something is away, any other SoftPromptError when this job can't be trained any more."""
        pools = self._pools
        data = await pools.datasets.call(self._data, job)
        current_version, current = (
            await pools.prompt_store.call(self._current, job) if job.spec.publish.alias else ("", None)
        )
        source: SoftPrompt | None = None
        if job.effective.source_job:
            source = await pools.job_files.call(self._source_of_job, job)
        elif job.effective.source_digest:
            source = await pools.prompt_store.call(self._source_of_version, job)
        return TrainingTask(
            job_id=job.id,
            attempt=job.attempt,
            spec=job.effective.training,
            data=data,
            source=source,
            current=current,
            current_version=current_version,
            checkpoint=await pools.job_files.call(self._files.load, job.id, FileKind.CHECKPOINT),
            priority=job.spec.priority,
            traceparent=job.effective.traceparent,
        )

    def _data(self, job: Job) -> TaskData:
        validation = self._datasets.file(job.spec.validation_dataset) if job.spec.validation_dataset else None
        seed = job.effective.training.hyperparameters.seed
        return TaskData(self._datasets.file(job.spec.dataset), validation, job.effective.validation_fraction, seed)

    async def keep_source(self, job: Job) -> None:
        """For a job that starts from another job's best prompt: keep that with this one, whatever becomes of the other."""
        if job.effective.source_job:
            await self._pools.job_files.call(self._copy_source, job)

    def _copy_source(self, job: Job) -> None:
        data = self._files.load(job.effective.source_job, FileKind.CHECKPOINT)
        if data is None:
            raise PreconditionFailed(
                f"tuningJobs/{job.effective.source_job} has no prompt to start from any more", field=FIELD
            )
        self._files.save(job.id, FileKind.SOURCE, 0, data)

    def _source_of_job(self, job: Job) -> SoftPrompt:
        data = self._files.load(job.id, FileKind.SOURCE)
        if data is None:
            raise PreconditionFailed("the prompt to start from is gone or damaged", field=FIELD)
        return best_prompt(data)

    def _source_of_version(self, job: Job) -> SoftPrompt:
        blob = decode_blob(self._prompt_store.fetch(job.effective.source_digest))
        if blob.manifest.hidden_size != job.effective.base_model.hidden_size:
            prompt, version = parse_version_name(job.effective.source_version, "spec.hyperparameters.init.source")
            raise PreconditionFailed(
                f"{prompt}@{version} has hidden size {blob.manifest.hidden_size}, the base model another one"
            )
        return blob.soft_prompt

    def _current(self, job: Job) -> tuple[str, SoftPrompt | None]:
        """What the alias names now; its matrix only if it is for the same base model: for another one its numbers would
        mean nothing.
        """
        version = self._prompt_store.refresh().current_version(job.spec.prompt, job.spec.publish.alias)
        if version is None:
            return "", None
        try:
            blob = decode_blob(self._prompt_store.fetch(version.digest))
        except NotFound:
            return version.name, None
        same = blob.manifest.base_model.fingerprint == job.effective.base_model.fingerprint
        return version.name, blob.soft_prompt if same else None
