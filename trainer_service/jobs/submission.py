"""Turns a caller's spec into a queued job: stores its examples as datasets and hands it to the job manager."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Protocol

from shared.caller import current_caller
from shared.location import Location
from shared.values.enums import TooLong
from shared.values.spec import TuningSpec, is_uri
from shared.violations import moved
from trainer_service.datasets.store import Inspected, Source
from trainer_service.datasets.tenant_datasets import TenantDatasets
from trainer_service.jobs.model import Job, StoredSpec
from trainer_service.training.data.dataset_facts import Description
from trainer_service.training.data.places import DATASET, VALIDATION, in_dataset, in_message, in_request

Take = Callable[[Source, str, Sequence[str]], Awaitable[str]]
"""Stores or inspects a source, given its URI's field and the allowed labels, and returns the dataset's name."""


class JobCreator(Protocol):
    """The part of the job manager that `JobSubmission` uses."""

    async def create(self, spec: StoredSpec, *, request_id: str = "", is_shared: bool = False) -> Job:
        """Queue a job. Raises as `JobManager.create`."""
        ...

    async def check(
        self,
        spec: StoredSpec,
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
    """Creates jobs of the current caller from specs. Its errors name the fields as the caller wrote them."""

    def __init__(self, datasets: TenantDatasets, jobs: JobCreator) -> None:
        self._datasets, self._jobs = datasets, jobs

    async def create(self, spec: TuningSpec, request_id: str = "", *, is_shared: bool = False) -> Job:
        """Creates a queued job. The spec's form was checked; its datasets are names, URIs or tuples of examples.
        `is_shared`: the request id holds for all callers of the tenant, see `JobRecords.create`.

        Raises InvalidInput with all violations, NotFound, PreconditionFailed or Overloaded.
        """
        datasets, tenant = self._datasets, current_caller().tenant

        async def store(source: Source, field: str, labels: Sequence[str]) -> str:
            return (await datasets.pool_of(source).call(datasets.add, tenant, source, field, labels)).name

        with _named(spec):
            stored = await self._stored(spec, store, {})
            return await self._jobs.create(stored, request_id=request_id, is_shared=is_shared)

    async def check(self, spec: TuningSpec, request_id: str = "", *, is_shared: bool = False) -> CheckedJob:
        """Checks what `create` would check, and stores nothing. Raises what `create` raises. An empty `spec.dataset`
        checks what does not depend on the data.
        """
        datasets, tenant, unstored = self._datasets, current_caller().tenant, dict[str, Inspected]()

        async def inspect(source: Source, field: str, labels: Sequence[str]) -> str:
            before = tuple(unstored.values())
            found = await datasets.pool_of(source).call(datasets.inspect, tenant, source, field, labels, before)
            unstored[found.dataset.name] = found
            return found.dataset.name

        with _named(spec):
            stored = await self._stored(spec, inspect, unstored)
            described = {name: (it.facts, it.sample) for name, it in unstored.items()}
            return await self._jobs.check(stored, described, request_id, is_shared=is_shared)

    async def _stored(self, spec: TuningSpec, take: Take, unstored: Mapping[str, Inspected]) -> StoredSpec:
        """The spec with the names of its datasets. `take` stores those that are new, or adds them to `unstored`.

        The labels of validation examples must be among those of the training examples, but need not include all.
        """
        dataset = await _name_of(spec.dataset, "spec.dataset", spec.labels, take)
        held_out, labels = spec.validation_dataset or "", spec.labels
        if _is_new(held_out) and not labels:
            labels = await self._labels(dataset, unstored)
        with moved(in_dataset(VALIDATION)):
            validation = await _name_of(held_out, "spec.validation_dataset", labels, take)
        given = {**vars(spec), "dataset": dataset, "validation_dataset": validation}
        return StoredSpec(**{**given, "too_long": spec.too_long or TooLong.REFUSE})

    async def _labels(self, dataset: str, unstored: Mapping[str, Inspected]) -> tuple[str, ...]:
        """The labels that occur in the training dataset; none if a check has no dataset."""
        if dataset in unstored:
            return unstored[dataset].facts.labels
        if not dataset:
            return ()
        return await self._datasets.pool.call(self._datasets.labels, current_caller().tenant, dataset)


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


def _is_new(source: Source) -> bool:
    return not isinstance(source, str) or is_uri(source)


async def _name_of(source: Source, field: str, labels: Sequence[str], take: Take) -> str:
    """The name of a dataset, given the source in `field` and the allowed labels."""
    if isinstance(source, str) and not is_uri(source):
        return source
    return await take(source, f"{field}.uri", labels)
