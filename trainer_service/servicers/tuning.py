"""TuningService: convert, delegate, convert back. Errors are domain errors; the interceptor makes statuses of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from prompttuning.v1 import tuning_pb2 as pb
from prompttuning.v1 import tuning_pb2_grpc

from shared.caller import current_caller
from shared.errors import InvalidInput
from shared.process.call_pool import CallPool
from shared.security.page_tokens import ListScope, PageTokens
from shared.values.datasets import UploadedDataset
from shared.values.usage import UsageQuery
from shared.violations import moved
from shared.wire.events import write_event
from shared.wire.mirror import fill, read_checked, write
from shared.wire.spec import read_checked_spec, read_spec_to_check
from trainer_service.datasets.chunks import MAX_CHUNK_BYTES
from trainer_service.datasets.csv_upload import CsvUpload
from trainer_service.datasets.store import StoredDataset
from trainer_service.datasets.tenant_datasets import TenantDatasets
from trainer_service.dispatch.manager import JobManager
from trainer_service.jobs.model import JobFilter
from trainer_service.jobs.reports import JobReports
from trainer_service.jobs.submission import JobSubmission
from trainer_service.jobs.view import shown_job, shown_payload
from trainer_service.service_info import ServiceInfo
from trainer_service.servicers.names import event_number_of, job_id_of, page_size_of
from trainer_service.servicers.streams import Beat, header_and_chunks, heartbeat, until_draining
from trainer_service.usage.lists import UsageLists
from trainer_service.webhooks.deliveries import Deliveries


class TuningServicer(tuning_pb2_grpc.TuningServiceServicer):
    """Large requests are read in `requests`. `draining` ends the watches. A watch is never silent for longer than
    `heartbeat_seconds`.
    """

    def __init__(
        self,
        jobs: JobManager,
        reports: JobReports,
        submission: JobSubmission,
        datasets: TenantDatasets,
        info: ServiceInfo,
        webhooks: Deliveries,
        usage: UsageLists,
        tokens: PageTokens,
        requests: CallPool,
        draining: asyncio.Event,
        heartbeat_seconds: float,
    ) -> None:
        self._jobs, self._reports, self._submission = jobs, reports, submission
        self._datasets, self._info, self._webhooks, self._usage = datasets, info, webhooks, usage
        self._tokens, self._requests, self._draining = tokens, requests, draining
        self._heartbeat_seconds = heartbeat_seconds

    async def UploadDataset(
        self, requests: AsyncIterator[pb.UploadDatasetRequest], context: Any
    ) -> pb.UploadDatasetResponse:
        header, chunks = await header_and_chunks(requests)
        tenant, format = current_caller().tenant, header.format
        if format == pb.DatasetHeader.FORMAT_CSV:
            csv = CsvUpload(header.size_bytes, header.digest, self._info.upload_limits.max_line_bytes)
            with moved(csv.line_of):
                lines = csv.json_lines(chunks, self._datasets.pool)
                return _uploaded(
                    await self._datasets.receive(tenant, lines, labels=header.labels, file_name=header.file_name)
                )
        if format not in (pb.DatasetHeader.FORMAT_UNSPECIFIED, pb.DatasetHeader.FORMAT_JSON_LINES):
            raise InvalidInput.of("header.format", f"{format} is not known; this trainer takes JSON lines and CSV")
        announced = {
            "size_bytes": header.size_bytes,
            "digest": header.digest,
            "labels": header.labels,
            "file_name": header.file_name,
        }
        return _uploaded(await self._datasets.receive(tenant, chunks, **announced))

    async def ListDatasets(self, request: pb.ListDatasetsRequest, context: Any) -> pb.ListDatasetsResponse:
        scope = ListScope("ListDatasets", current_caller())
        after, size = self._tokens.open(request.page_token, scope), page_size_of(request.page_size)
        found, more = await self._datasets.pool.call(self._datasets.page, current_caller().tenant, size, after)
        token = self._tokens.seal(found[-1].name, scope) if more else ""
        return fill(pb.ListDatasetsResponse(), datasets=found, next_page_token=token)

    async def GetDataset(self, request: pb.GetDatasetRequest, context: Any) -> pb.GetDatasetResponse:
        found = await self._datasets.pool.call(self._datasets.get, current_caller().tenant, request.name)
        return fill(pb.GetDatasetResponse(), dataset=found)

    async def DownloadDataset(
        self, request: pb.DownloadDatasetRequest, context: Any
    ) -> AsyncIterator[pb.DownloadDatasetResponse]:
        file = await self._datasets.pool.call(self._datasets.open, current_caller().tenant, request.name)
        with file:
            while chunk := await self._datasets.pool.call(file.read, MAX_CHUNK_BYTES):
                yield pb.DownloadDatasetResponse(chunk=chunk)

    async def DeleteDataset(self, request: pb.DeleteDatasetRequest, context: Any) -> pb.DeleteDatasetResponse:
        caller = current_caller()
        await self._datasets.pool.call(self._datasets.delete, caller.tenant, request.name, caller.may_use)
        return pb.DeleteDatasetResponse()

    async def CreateTuningJob(self, request: pb.CreateTuningJobRequest, context: Any) -> pb.CreateTuningJobResponse:
        if request.validate_only:
            return await self._checked(request)
        spec = await self._requests.call(read_checked_spec, request.spec)
        job = await self._submission.create(spec, request.request_id, is_shared=request.shared_request_id)
        return fill(pb.CreateTuningJobResponse(), job=shown_job(job))

    async def _checked(self, request: pb.CreateTuningJobRequest) -> pb.CreateTuningJobResponse:
        """The answer to `validate_only`: a job without a name, which does not exist."""
        spec = await self._requests.call(read_spec_to_check, request.spec)
        checked = await self._submission.check(spec, request.request_id, is_shared=request.shared_request_id)
        response = pb.CreateTuningJobResponse()
        if checked.job is not None:
            fill(response, job=shown_job(checked.job))
            response.job.ClearField("name")
            response.job.ClearField("create_time")
        if checked.training_seconds is not None:
            response.estimate.duration.FromNanoseconds(round(checked.training_seconds * 1e9))
        if checked.memory_bytes is not None:
            response.estimate.memory_bytes = checked.memory_bytes
        return response

    async def GetTuningJob(self, request: pb.GetTuningJobRequest, context: Any) -> pb.GetTuningJobResponse:
        job = await self._jobs.get(job_id_of(request.name))
        return fill(pb.GetTuningJobResponse(), job=shown_job(job))

    async def ListTuningJobs(self, request: pb.ListTuningJobsRequest, context: Any) -> pb.ListTuningJobsResponse:
        filter, size = read_checked(JobFilter, request), page_size_of(request.page_size)
        scope = ListScope("ListTuningJobs", current_caller(), filter.asked)
        after = job_id_of(request.after, "after") if request.after else ""
        page = await self._jobs.list(filter, size, self._tokens.open(request.page_token, scope) or after)
        token = self._tokens.seal(page.next_after, scope)
        return fill(pb.ListTuningJobsResponse(), jobs=map(shown_job, page.jobs), next_page_token=token)

    async def WatchTuningJob(
        self, request: pb.WatchTuningJobRequest, context: Any
    ) -> AsyncIterator[pb.WatchTuningJobResponse]:
        last = event_number_of(request.after)
        events = self._jobs.watch(job_id_of(request.name), last)
        async with aclosing(until_draining(events, self._draining, self._heartbeat_seconds)) as events_until_drain:
            async for event in events_until_drain:
                if isinstance(event, Beat):
                    yield pb.WatchTuningJobResponse(
                        event=pb.TuningEvent(number=last, heartbeat=heartbeat(self._heartbeat_seconds))
                    )
                else:
                    last = event.number
                    yield pb.WatchTuningJobResponse(
                        event=write_event(event.number, event.time, shown_payload(event.payload))
                    )

    async def GetJobReport(self, request: pb.GetJobReportRequest, context: Any) -> pb.GetJobReportResponse:
        report = await self._reports.read(job_id_of(request.name), omit_answers=request.omit_answers)
        return fill(pb.GetJobReportResponse(), report=report)

    async def CancelTuningJob(self, request: pb.CancelTuningJobRequest, context: Any) -> pb.CancelTuningJobResponse:
        job = await self._jobs.cancel(job_id_of(request.name))
        return fill(pb.CancelTuningJobResponse(), job=shown_job(job))

    async def PauseTuningJob(self, request: pb.PauseTuningJobRequest, context: Any) -> pb.PauseTuningJobResponse:
        job = await self._jobs.pause(job_id_of(request.name))
        return fill(pb.PauseTuningJobResponse(), job=shown_job(job))

    async def ResumeTuningJob(self, request: pb.ResumeTuningJobRequest, context: Any) -> pb.ResumeTuningJobResponse:
        job = await self._jobs.resume(job_id_of(request.name))
        return fill(pb.ResumeTuningJobResponse(), job=shown_job(job))

    async def DeleteTuningJob(self, request: pb.DeleteTuningJobRequest, context: Any) -> pb.DeleteTuningJobResponse:
        await self._jobs.delete(job_id_of(request.name))
        return pb.DeleteTuningJobResponse()

    async def ListWebhooks(self, request: pb.ListWebhooksRequest, context: Any) -> pb.ListWebhooksResponse:
        return fill(pb.ListWebhooksResponse(), webhooks=await self._webhooks.list())

    async def TestWebhook(self, request: pb.TestWebhookRequest, context: Any) -> pb.TestWebhookResponse:
        return pb.TestWebhookResponse(event_id=await self._webhooks.test(request.name))

    async def RetryWebhook(self, request: pb.RetryWebhookRequest, context: Any) -> pb.RetryWebhookResponse:
        return pb.RetryWebhookResponse(num_deliveries=await self._webhooks.retry(request.name))

    async def ListUsage(self, request: pb.ListUsageRequest, context: Any) -> pb.ListUsageResponse:
        page = await self._usage.page(read_checked(UsageQuery, request), page_size_of(request.page_size))
        return write(page, pb.ListUsageResponse())

    async def GetServiceInfo(self, request: pb.GetServiceInfoRequest, context: Any) -> pb.GetServiceInfoResponse:
        info = write(self._info.shown(**vars(await self._jobs.counts())), pb.GetServiceInfoResponse())
        info.current_time.GetCurrentTime()
        return info


def _uploaded(stored: StoredDataset) -> pb.UploadDatasetResponse:
    found = UploadedDataset(stored.name, stored.num_examples, stored.task, stored.labels)
    return write(found, pb.UploadDatasetResponse())
