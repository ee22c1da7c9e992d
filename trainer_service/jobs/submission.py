"""Turns a caller's request into a queued job: stores its examples as datasets and hands the spec to the job manager."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Protocol

from shared.caller import Tenant
from trainer_service.datasets.fields import DATASET, VALIDATION, in_request, labels_under, renamed
from trainer_service.datasets.tenant_datasets import TenantDatasets
from trainer_service.jobs.model import Job, TuningSpec
from trainer_service.jobs.owner import NO_OWNER, JobOwner
from trainer_service.jobs.request import DatasetUri, ExampleSource, InlineExamples, JobRequest, UploadedDataset


class JobCreator(Protocol):
    """The part of the job manager that `JobSubmission` uses."""

    async def create(self, spec: TuningSpec, *, request_id: str = "", owner: JobOwner = ...) -> Job:
        """Queue a job. Raises as `JobManager.create`."""
        ...


class JobSubmission:
    """Creates jobs from requests. Its errors name the fields as the caller wrote them."""

    def __init__(self, datasets: TenantDatasets, jobs: JobCreator) -> None:
        self._datasets, self._jobs = datasets, jobs

    async def create(self, request: JobRequest, owner: JobOwner = NO_OWNER) -> Job:
        """Creates a queued job. Raises InvalidInput with all violations, NotFound, PreconditionFailed or Overloaded."""
        with ExitStack() as names:
            names.enter_context(renamed(labels_under("spec")))
            for which, source in ((DATASET, request.dataset), (VALIDATION, request.validation)):
                if isinstance(source, InlineExamples):
                    names.enter_context(renamed(in_request(which, source.field)))
            dataset = await self._store(owner.tenant, request.dataset, request.spec.labels)
            validation = await self._store_validation(owner.tenant, request, dataset)
            spec = request.spec.model_copy(update={"dataset": dataset, "validation_dataset": validation})
            return await self._jobs.create(spec, request_id=request.request_id, owner=owner)

    async def _store(self, tenant: Tenant, source: ExampleSource, labels: Sequence[str]) -> str:
        """The name of the dataset, which is stored now if it is new."""
        match source:
            case InlineExamples(examples=examples):
                return (await self._datasets.pool.call(self._datasets.add_examples, tenant, examples, labels)).name
            case DatasetUri(uri=uri, field=field):
                return (await self._datasets.roots_pool.call(self._datasets.add_uri, tenant, uri, field, labels)).name
            case UploadedDataset(name=name):
                return name

    async def _store_validation(self, tenant: Tenant, request: JobRequest, dataset: str) -> str:
        """The name of the validation dataset, or "". Its labels must be among those of the training examples, but need
        not include all of them.
        """
        if request.validation is None or isinstance(request.validation, UploadedDataset):
            return request.validation.name if request.validation else ""
        labels = request.spec.labels or await self._datasets.pool.call(self._datasets.labels, tenant, dataset)
        with renamed(lambda field: field.replace(DATASET, VALIDATION, 1) if field.startswith(DATASET) else field):
            return await self._store(tenant, request.validation, labels)
