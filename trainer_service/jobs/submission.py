"""Turns a caller's spec into a queued job: stores its examples as datasets and hands it to the job manager."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Protocol

from shared.caller import Tenant
from shared.errors import InvalidInput
from shared.location import Location
from shared.values.enums import TooLong
from shared.values.example import Example
from shared.values.spec import TuningSpec, is_uri
from shared.violations import moved
from trainer_service.datasets.tenant_datasets import TenantDatasets
from trainer_service.jobs.model import Job, StoredSpec
from trainer_service.jobs.owner import NO_OWNER, JobOwner
from trainer_service.training.data.places import DATASET, VALIDATION, in_dataset, in_message, in_request


class JobCreator(Protocol):
    """The part of the job manager that `JobSubmission` uses."""

    async def create(self, spec: StoredSpec, *, request_id: str = "", owner: JobOwner = ...) -> Job:
        """Queue a job. Raises as `JobManager.create`."""
        ...

    async def check(self, spec: StoredSpec, owner: JobOwner) -> CheckedJob:
        """Check a job that could be created. Raises as `JobManager.check`."""
        ...


@dataclass(frozen=True)
class CheckedJob:
    """A job that could be created now. `job` is None if it was checked without its data; it is not stored."""

    job: Job | None
    training_seconds: float | None = None
    """Estimated time on a worker; None if nothing is known about such jobs."""
    memory_bytes: int | None = None
    """Estimated memory of a worker that trains it alone; None if nothing is known."""


class JobSubmission:
    """Creates jobs from specs. Its errors name the fields as the caller wrote them."""

    def __init__(self, datasets: TenantDatasets, jobs: JobCreator) -> None:
        self._datasets, self._jobs = datasets, jobs

    async def create(self, spec: TuningSpec, request_id: str = "", owner: JobOwner = NO_OWNER) -> Job:
        """Creates a queued job. The spec's form was checked; its datasets are names, URIs or tuples of examples.

        Raises InvalidInput with all violations, NotFound, PreconditionFailed or Overloaded.
        """
        with ExitStack() as names:
            names.enter_context(moved(in_message("spec", "labels")))
            for which, source, field in (
                (DATASET, spec.dataset, "dataset"),
                (VALIDATION, spec.validation_dataset, "validation_dataset"),
            ):
                if isinstance(source, tuple):
                    names.enter_context(moved(in_request(which, Location(("spec", field, "inline", "examples")))))
            dataset = await self._store(owner.tenant, spec.dataset, "spec.dataset", spec.labels)
            validation = await self._store_validation(owner.tenant, spec, dataset)
            return await self._jobs.create(_stored(spec, dataset, validation), request_id=request_id, owner=owner)

    async def check(self, spec: TuningSpec, owner: JobOwner = NO_OWNER) -> CheckedJob:
        """Checks what `create` would check, and stores nothing. Raises what `create` raises, and InvalidInput for data
        that is not stored yet. An empty `spec.dataset` checks what does not depend on the data.
        """
        for name in ("dataset", "validation_dataset"):
            source = getattr(spec, name)
            if isinstance(source, tuple) or is_uri(source):
                field = f"spec.{name}." + ("inline.examples" if isinstance(source, tuple) else "uri")
                raise InvalidInput.of(field, "is not stored yet: to check it, upload it first, or leave it out")
        with moved(in_message("spec", "labels")):
            return await self._jobs.check(_stored(spec, spec.dataset, spec.validation_dataset or ""), owner)

    async def _store(self, tenant: Tenant, source: str | tuple[Example, ...], field: str, labels: Sequence[str]) -> str:
        """The name of the dataset, which is stored now if it is new."""
        datasets = self._datasets
        if isinstance(source, tuple):
            return (await datasets.pool.call(datasets.add_examples, tenant, source, labels)).name
        if is_uri(source):
            return (await datasets.roots_pool.call(datasets.add_uri, tenant, source, f"{field}.uri", labels)).name
        return source

    async def _store_validation(self, tenant: Tenant, spec: TuningSpec, dataset: str) -> str:
        """The name of the validation dataset, or "". Its labels must be among those of the training examples, but need
        not include all of them.
        """
        source = spec.validation_dataset
        if source is None or (isinstance(source, str) and not is_uri(source)):
            return source or ""
        labels = spec.labels or await self._datasets.pool.call(self._datasets.labels, tenant, dataset)
        with moved(in_dataset(VALIDATION)):
            return await self._store(tenant, source, "spec.validation_dataset", labels)


def _stored(spec: TuningSpec, dataset: str, validation: str) -> StoredSpec:
    """The spec with the names of its stored datasets."""
    given = {**vars(spec), "dataset": dataset, "validation_dataset": validation}
    return StoredSpec(**{**given, "too_long": spec.too_long or TooLong.REFUSE})
