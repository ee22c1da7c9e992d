"""Datasets and tuning jobs, asynchronously."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import Any

from prompttuning.v1 import tuning_pb2

from shared.errors import DeadlineExceeded, NotFound, PermissionDenied, Unavailable, Unimplemented
from softprompt.client.clone import cloned_spec, continued_spec
from softprompt.client.connection import Connection
from softprompt.client.convert import is_remote, spec_message
from softprompt.client.datasets import UploadSource
from softprompt.client.mirror import read
from softprompt.client.verdict import first_verdict
from softprompt.client.watch import watch
from softprompt.data.prepare import DATASET, VALIDATION_DATASET, PreparedData, checked_labels, prepare
from softprompt.errors import JobFailed
from softprompt.types.tuning import (
    Dataset,
    JobEvent,
    JobOrder,
    JobState,
    ServiceInfo,
    StateChanged,
    StoredDataset,
    TuningJob,
    TuningSpec,
    UploadedDataset,
)

PAGE_SIZE = 200


class TuningMethods:
    """Part of the client; see AsyncClient."""

    _connection: Connection

    async def upload_dataset(
        self, dataset: Dataset, *, labels: Sequence[str] = (), timeout_seconds: float | None = None
    ) -> UploadedDataset:
        """Store examples under the digest of their bytes. `dataset` is a path, a DataFrame, examples, or `Data`, which chooses columns.

        InvalidInput says what is not understood, in one message with the lines that show it; see docs/data.md.
        """
        labels = checked_labels(labels)
        return await self._upload(await asyncio.to_thread(prepare, dataset, labels), labels, timeout_seconds)

    async def _upload(self, prepared: PreparedData, labels: Sequence[str], timeout_seconds: float | None = None) -> UploadedDataset:
        source = await asyncio.to_thread(UploadSource.of, prepared.content)

        async def parts() -> AsyncIterator[tuning_pb2.UploadDatasetRequest]:
            header = tuning_pb2.DatasetHeader(size_bytes=source.size_bytes, digest=source.digest, labels=labels)
            yield tuning_pb2.UploadDatasetRequest(header=header)
            for chunk in source.chunks():
                yield tuning_pb2.UploadDatasetRequest(chunk=chunk)

        with prepared.named(DATASET):
            response = await self._connection.trainer.call(self._connection.tuning.UploadDataset, parts(), timeout_seconds)
        return read(UploadedDataset, response)

    async def list_datasets(self, *, limit: int | None = None) -> list[StoredDataset]:
        """Datasets of the caller's tenant in order of their names; every page is fetched, up to `limit` datasets."""
        found: list[StoredDataset] = []
        page_token = ""
        while True:
            page_size = PAGE_SIZE if limit is None else min(PAGE_SIZE, limit - len(found))
            request = tuning_pb2.ListDatasetsRequest(page_size=page_size, page_token=page_token)
            response = await self._connection.trainer.call(self._connection.tuning.ListDatasets, request)
            found += [read(StoredDataset, dataset) for dataset in response.datasets]
            page_token = response.next_page_token
            if not page_token or (limit is not None and len(found) >= limit):
                return found

    async def get_dataset(self, name: str) -> StoredDataset:
        """NotFound for a dataset that the caller's tenant doesn't have."""
        request = tuning_pb2.GetDatasetRequest(name=name)
        return read(StoredDataset, (await self._connection.trainer.call(self._connection.tuning.GetDataset, request)).dataset)

    async def delete_dataset(self, name: str) -> None:
        """Take a dataset from the caller's tenant. PreconditionFailed, naming them, if jobs that have not ended need it."""
        await self._connection.trainer.call(self._connection.tuning.DeleteDataset, tuning_pb2.DeleteDatasetRequest(name=name))

    async def create_job(self, spec: TuningSpec, *, request_id: str = "", timeout_seconds: float | None = None) -> TuningJob:
        """Queue a job, uploading its examples first. Repeating a `request_id` returns the job that it made before."""
        labels = checked_labels(spec.labels, "spec.labels")
        with ExitStack() as names:
            dataset = await self._stored(spec.dataset, labels, DATASET, names)
            held_out = spec.validation_dataset
            validation = "" if held_out is None else await self._stored(held_out, labels, VALIDATION_DATASET, names)
            message = spec_message(spec, dataset, validation)
            request = tuning_pb2.CreateTuningJobRequest(spec=message, request_id=request_id or uuid.uuid4().hex)
            response = await self._connection.trainer.call(self._connection.tuning.CreateTuningJob, request, timeout_seconds)
        return read(TuningJob, response.job)

    async def clone_job(self, name: str, *, request_id: str = "", **changes: Any) -> TuningJob:
        """Queue the same job again with fields of its spec replaced, as `clone_job(name, prompt="other", priority=5)`.

        Of `hyperparameters` only those that are not None are replaced. A deadline is not taken over. InvalidInput for an unknown field.
        """
        return await self.create_job(cloned_spec(await self.get_job(name), changes), request_id=request_id)

    async def continue_job(self, name: str, *, request_id: str = "", **changes: Any) -> TuningJob:
        """`clone_job`, starting from what the job has trained: its version, or, if it ended without one, its best prompt so far.

        With `dataset=` it goes on with other data, for example more of it.
        """
        return await self.create_job(continued_spec(await self.get_job(name), changes), request_id=request_id)

    async def tune(self, spec: TuningSpec, *, on_event: Callable[[JobEvent], object] | None = None) -> TuningJob:
        """Queue a job, wait until it has succeeded and until a live replica, if there is one, has looked at its version.

        JobFailed if it fails or is cancelled, PreconditionFailed with the reason if the replica refuses the version. Leaving early does
        not cancel the job.
        """
        job = await self.create_job(spec)
        job = await self.wait_for_job(job.name, on_event=on_event)
        if job.result is not None and job.result.alias_moved:  # replicas load what an alias names
            with suppress(DeadlineExceeded, NotFound, PermissionDenied, Unavailable, Unimplemented):
                await first_verdict(self._connection, job.result.version)
        return job

    async def get_job(self, name: str) -> TuningJob:
        request = tuning_pb2.GetTuningJobRequest(name=name)
        return read(TuningJob, (await self._connection.trainer.call(self._connection.tuning.GetTuningJob, request)).job)

    async def list_jobs(
        self,
        *,
        states: Sequence[JobState] = (),
        prompt: str = "",
        annotations: Mapping[str, str] | None = None,
        order: JobOrder = JobOrder.NEWEST_FIRST,
        limit: int | None = None,
    ) -> list[TuningJob]:
        """Jobs in that order; every page is fetched, up to `limit` jobs."""
        jobs: list[TuningJob] = []
        page_token = ""
        while True:
            request = tuning_pb2.ListTuningJobsRequest(
                page_size=PAGE_SIZE if limit is None else min(PAGE_SIZE, limit - len(jobs)),
                page_token=page_token,
                states=[tuning_pb2.TuningJob.State.Value(f"STATE_{JobState(state)}") for state in states],
                prompt=prompt,
                annotations=annotations or {},
                order=tuning_pb2.ListTuningJobsRequest.Order.Value(f"ORDER_{JobOrder(order)}"),
            )
            response = await self._connection.trainer.call(self._connection.tuning.ListTuningJobs, request)
            jobs += [read(TuningJob, job) for job in response.jobs]
            page_token = response.next_page_token
            if not page_token or (limit is not None and len(jobs) >= limit):
                return jobs

    def watch_job(self, name: str, *, after: int = 0, reconnect_seconds: float = 120.0) -> AsyncIterator[JobEvent]:
        """Events after number `after`, those of the past first, until the job's last one.

        A lost connection is taken up again after the last seen event; Unavailable once that failed for `reconnect_seconds`.
        """
        return watch(self._connection, name, after, reconnect_seconds)

    async def wait_for_job(
        self, name: str, *, timeout_seconds: float | None = None, on_event: Callable[[JobEvent], object] | None = None
    ) -> TuningJob:
        """The job once it has succeeded. JobFailed if it fails or is cancelled, TimeoutError after `timeout_seconds`."""
        last: TuningJob | None = None
        async with asyncio.timeout(timeout_seconds):
            async for event in self.watch_job(name):
                if on_event is not None:
                    on_event(event)
                if isinstance(event, StateChanged):
                    last = event.job
        if last is None or not last.state.is_final:
            last = await self.get_job(name)
        if last.state is not JobState.SUCCEEDED:
            raise JobFailed(last)
        return last

    async def cancel_job(self, name: str) -> TuningJob:
        """The job, cancelling or cancelled; its best prompt so far is kept for `continue_job`. PreconditionFailed if it ended otherwise."""
        request = tuning_pb2.CancelTuningJobRequest(name=name)
        return read(TuningJob, (await self._connection.trainer.call(self._connection.tuning.CancelTuningJob, request)).job)

    async def pause_job(self, name: str) -> TuningJob:
        """Take the job off its worker at its next step, keeping a checkpoint."""
        request = tuning_pb2.PauseTuningJobRequest(name=name)
        return read(TuningJob, (await self._connection.trainer.call(self._connection.tuning.PauseTuningJob, request)).job)

    async def resume_job(self, name: str) -> TuningJob:
        """Queue a paused job again; it goes on from its checkpoint."""
        request = tuning_pb2.ResumeTuningJobRequest(name=name)
        return read(TuningJob, (await self._connection.trainer.call(self._connection.tuning.ResumeTuningJob, request)).job)

    async def delete_job(self, name: str) -> None:
        """Remove an ended job with its events; versions that it published stay."""
        await self._connection.trainer.call(self._connection.tuning.DeleteTuningJob, tuning_pb2.DeleteTuningJobRequest(name=name))

    async def service_info(self) -> ServiceInfo:
        """What the trainer can train, its limits and its defaults."""
        return read(
            ServiceInfo, await self._connection.trainer.call(self._connection.tuning.GetServiceInfo, tuning_pb2.GetServiceInfoRequest())
        )

    async def _stored(self, dataset: Dataset, labels: Sequence[str], which: str, names: ExitStack) -> str:
        """The name or URI of the data, uploaded now if it is a caller's. `names` renames lines in what the service finds later."""
        if isinstance(dataset, str) and is_remote(dataset):
            return dataset
        prepared = await asyncio.to_thread(prepare, dataset, labels, which)
        names.enter_context(prepared.named(which))
        return (await self._upload(prepared, labels)).dataset
