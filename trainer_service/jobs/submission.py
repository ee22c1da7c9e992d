"""Turns a caller's spec into a queued job: stores its examples as datasets and hands it to the job manager."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Protocol

from shared.location import Location
from shared.values.enums import TooLong
from shared.values.example import Example
from shared.values.spec import TuningSpec, is_uri
from shared.violations import moved
from trainer_service.datasets.store import Inspected
from trainer_service.datasets.tenant_datasets import TenantDatasets
from trainer_service.jobs.model import Job, StoredSpec
from trainer_service.jobs.owner import NO_OWNER, JobOwner
from trainer_service.training.data.dataset_facts import Description
from trainer_service.training.data.places import DATASET, VALIDATION, in_dataset, in_message, in_request

Take = Callable[[str | tuple[Example, ...], str, Sequence[str]], Awaitable[str]]
"""The name of a dataset, given its source, its field and the allowed labels."""


class JobCreator(Protocol):
    """The part of the job manager that `JobSubmission` uses."""

    async def create(
        self, spec: StoredSpec, *, request_id: str = "", owner: JobOwner = ..., is_shared: bool = False
    ) -> Job:
        """Queue a job. Raises as `JobManager.create`."""
        ...

    async def check(
        self,
        spec: StoredSpec,
        owner: JobOwner,
        unstored: Mapping[str, Description],
        request_id: str = "",
        *,
        is_shared: bool = False,
    ) -> CheckedJob:
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

    async def create(
        self, spec: TuningSpec, request_id: str = "", owner: JobOwner = NO_OWNER, *, is_shared: bool = False
    ) -> Job:
        """Creates a queued job. The spec's form was checked; its datasets are names, URIs or tuples of examples.
        `is_shared`: the request id holds for all callers, see `JobRecords.create`.

        Raises InvalidInput with all violations, NotFound, PreconditionFailed or Overloaded.
        """
        datasets, tenant = self._datasets, owner.tenant

        async def store(source: str | tuple[Example, ...], field: str, labels: Sequence[str]) -> str:
            """The name of the dataset, which is stored now if it is new."""
            if isinstance(source, tuple):
                return (await datasets.pool.call(datasets.add_examples, tenant, source, labels)).name
            if is_uri(source):
                return (await datasets.roots_pool.call(datasets.add_uri, tenant, source, f"{field}.uri", labels)).name
            return source

        async def labels_of(dataset: str) -> Sequence[str]:
            return await datasets.pool.call(datasets.labels, tenant, dataset)

        with _named(spec):
            stored = await _stored(spec, store, labels_of)
            return await self._jobs.create(stored, request_id=request_id, owner=owner, is_shared=is_shared)

    async def check(
        self, spec: TuningSpec, owner: JobOwner = NO_OWNER, request_id: str = "", *, is_shared: bool = False
    ) -> CheckedJob:
        """Checks what `create` would check, and stores nothing. Raises what `create` raises. An empty `spec.dataset`
        checks what does not depend on the data.
        """
        datasets, tenant, unstored = self._datasets, owner.tenant, dict[str, Inspected]()

        async def inspect(source: str | tuple[Example, ...], field: str, labels: Sequence[str]) -> str:
            """The name that the dataset would have."""
            before = tuple(unstored.values())
            if isinstance(source, tuple):
                found = await datasets.pool.call(datasets.inspect_examples, tenant, source, labels, before)
            elif is_uri(source):
                place = f"{field}.uri"
                found = await datasets.roots_pool.call(datasets.inspect_uri, tenant, source, place, labels, before)
            else:
                return source
            unstored[found.dataset.name] = found
            return found.dataset.name

        async def labels_of(dataset: str) -> Sequence[str]:
            if dataset in unstored:
                return unstored[dataset].facts.labels
            return await datasets.pool.call(datasets.labels, tenant, dataset) if dataset else ()

        with _named(spec):
            stored = await _stored(spec, inspect, labels_of)
            described = {name: (it.facts, it.sample) for name, it in unstored.items()}
            return await self._jobs.check(stored, owner, described, request_id, is_shared=is_shared)


@contextmanager
def _named(spec: TuningSpec) -> Iterator[None]:
    """Errors about examples in the request name their fields there."""
    with ExitStack() as names:
        names.enter_context(moved(in_message("spec", "labels")))
        for which, source, field in (
            (DATASET, spec.dataset, "dataset"),
            (VALIDATION, spec.validation_dataset, "validation_dataset"),
        ):
            if isinstance(source, tuple):
                names.enter_context(moved(in_request(which, Location(("spec", field, "inline", "examples")))))
        yield


async def _stored(spec: TuningSpec, take: Take, labels_of: Callable[[str], Awaitable[Sequence[str]]]) -> StoredSpec:
    """The spec with the names of its datasets, each of which `take` stores or inspects.

    The labels of validation examples must be among those of the training examples, but need not include all of them.
    """
    dataset, validation, held_out = await take(spec.dataset, "spec.dataset", spec.labels), "", spec.validation_dataset
    if isinstance(held_out, tuple) or (held_out and is_uri(held_out)):
        labels = spec.labels or await labels_of(dataset)
        with moved(in_dataset(VALIDATION)):
            validation = await take(held_out, "spec.validation_dataset", labels)
    else:
        validation = held_out or ""
    given = {**vars(spec), "dataset": dataset, "validation_dataset": validation}
    return StoredSpec(**{**given, "too_long": spec.too_long or TooLong.REFUSE})
