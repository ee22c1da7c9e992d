"""Turns a claimed job into a task for a worker: datasets by digest, the prompts to start from and to compare with, the
checkpoint.

Each part comes from another system and is read in the thread pool of that system.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from shared.errors import NotFound, PreconditionFailed
from shared.names import parse_version_name
from shared.prompt.blob import decode_blob
from shared.prompt.prefix import Prefix
from shared.store.store import PromptStore
from trainer_service.jobs.model import Job
from trainer_service.jobs.sources import FIELD
from trainer_service.jobs.store.files import FileKind, JobFiles
from trainer_service.pools import TrainerPools
from trainer_service.training.checkpoint import best_prefix
from trainer_service.training.events import DatasetFile, TaskData, TrainingTask


class Preparation:
    """Collects the parts of training tasks. `dataset_file(name)` finds a dataset; it may block, and raises NotFound, or
    DamagedBlob if the bytes don't match the name.
    """

    def __init__(
        self,
        dataset_file: Callable[[str], DatasetFile],
        prompt_store: PromptStore,
        files: JobFiles,
        pools: TrainerPools,
    ) -> None:
        self._dataset_file, self._prompt_store, self._files, self._pools = dataset_file, prompt_store, files, pools

    async def make_task(self, job: Job) -> TrainingTask:
        """The task for the job's current attempt. Raises Unavailable if a system is unavailable, another
        SoftPromptError if the job can no longer be trained.
        """
        pools = self._pools
        data = await pools.datasets.call(self._data, job)
        current = await pools.prompt_store.call(self._current, job) if job.spec.publish.moved_alias else {}
        source: Prefix | None = None
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
            checkpoint=await pools.job_files.call(self._files.load, job.id, FileKind.CHECKPOINT),
            priority=job.spec.priority,
            traceparent=job.effective.traceparent,
            **current,
        )

    def _data(self, job: Job) -> TaskData:
        validation = self._dataset_file(job.spec.validation_dataset) if job.spec.validation_dataset else None
        seed = job.effective.training.hyperparameters.seed
        return TaskData(self._dataset_file(job.spec.dataset), validation, job.effective.validation_fraction, seed)

    async def keep_source(self, job: Job) -> None:
        """Copies the prompt of the job that this one starts from, if any, because the other job may be deleted."""
        if job.effective.source_job:
            await self._pools.job_files.call(self._copy_source, job)

    def _copy_source(self, job: Job) -> None:
        data = self._files.load(job.effective.source_job, FileKind.CHECKPOINT)
        if data is None:
            raise PreconditionFailed(
                f"tuningJobs/{job.effective.source_job} no longer has a prompt to start from", field=FIELD
            )
        self._files.save(job.id, FileKind.SOURCE, 0, data)

    def _source_of_job(self, job: Job) -> Prefix:
        data = self._files.load(job.id, FileKind.SOURCE)
        if data is None:
            raise PreconditionFailed("the prompt to start from is missing or damaged", field=FIELD)
        return best_prefix(data)

    def _source_of_version(self, job: Job) -> Prefix:
        blob = decode_blob(self._prompt_store.fetch(job.effective.source_digest))
        if blob.manifest.hidden_size != job.effective.base_model.hidden_size:
            prompt, version = parse_version_name(job.effective.source_version, "spec.hyperparameters.init.source")
            raise PreconditionFailed(
                f"{prompt}@{version} has hidden size {blob.manifest.hidden_size}, but the base model has "
                f"{job.effective.base_model.hidden_size}"
            )
        return blob.prefix

    def _current(self, job: Job) -> dict[str, Any]:
        """What the task knows of the version that the job's alias names now."""
        version = self._prompt_store.refresh().current_version(job.spec.prompt, job.spec.publish.moved_alias)
        if version is None:
            return {}
        try:
            blob = decode_blob(self._prompt_store.fetch(version.digest))
        except NotFound:
            return {"current_version": version.name}
        if blob.manifest.base_model.fingerprint == job.effective.base_model.fingerprint:
            return {"current_version": version.name, "current": blob.prefix}
        # The job is that of the store, because a manifest may claim any.
        return {"current_version": version.name, "foreign_job": version.job}
