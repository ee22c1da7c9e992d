"""Tuning jobs, asynchronously; and the blocking forms of these methods."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from datetime import datetime
from typing import Any

from prompttuning.v1 import tuning_pb2

from shared.errors import DeadlineExceeded, NotFound, PermissionDenied, Unavailable, Unimplemented
from shared.values.enums import JobOrder, JobState
from shared.values.service import ServiceInfo
from shared.values.spec import Distillation, TuningSpec, is_uri
from shared.values.usage import BudgetStatus, UsageDimension, UsagePage, UsageQuery, UsageRow
from shared.values.webhooks import Webhook
from shared.wire.mirror import read, write
from softprompt.client.arguments import built
from softprompt.client.clone import cloned_spec, continued_spec
from softprompt.client.connection import Connection
from softprompt.client.convert import is_remote, usage_query
from softprompt.client.datasets import COPY_SECONDS, DatasetMethods, OnUpload
from softprompt.client.job_checks import check_before_upload, check_job
from softprompt.client.job_following import JobFollowing
from softprompt.client.sync_methods import SyncMethods, blocking
from softprompt.client.verdict import first_verdict
from softprompt.data.distillation import Text, distillation_examples
from softprompt.data.prepare import checked_labels, prepare
from softprompt.types.data import DATASET, VALIDATION_DATASET, Dataset
from softprompt.types.events import JobEvent
from softprompt.types.jobs import JobCheck, TuningJob
from softprompt.types.report import JobReport


class TuningMethods(DatasetMethods, JobFollowing):
    """The part of AsyncClient for tuning jobs."""

    _connection: Connection

    async def create_job(
        self,
        spec: TuningSpec,
        *,
        request_id: str = "",
        shared_request_id: bool = False,
        timeout_seconds: float | None = None,
        on_upload: OnUpload | None = None,
    ) -> TuningJob:
        """Upload the examples and queue a job. Repeating a `request_id` returns the job that it created; with
        `shared_request_id`, also the one that another caller created for the same prompt. `timeout_seconds` is for the
        creation alone; the default is longer for data from a URI. `on_upload`: see `on_progress` of `upload_dataset`.
        Raises InvalidInput.
        """
        with ExitStack() as names:
            dataset, validation = await self._stored_data(spec, names, on_upload, request_id)
            if timeout_seconds is None and (is_uri(dataset) or is_uri(validation)):
                timeout_seconds = max(COPY_SECONDS, self._connection.trainer.timeout_seconds)
            stored = replace(spec, dataset=dataset, validation_dataset=validation)
            message = write(stored, tuning_pb2.TuningSpec(), "spec")
            request = tuning_pb2.CreateTuningJobRequest(
                spec=message, request_id=request_id or uuid.uuid4().hex, shared_request_id=shared_request_id
            )
            return await self._connection.ask(TuningJob, request, "job", timeout_seconds)

    async def validate_job(self, spec: TuningSpec, *, on_upload: OnUpload | None = None) -> JobCheck:
        """Store the examples and check the job without creating it: what the recipe chooses, what was counted in the
        data, and how long it would train. Raises what `create_job` raises.
        """
        with ExitStack() as names:
            dataset, validation = await self._stored_data(spec, names, on_upload)
            return await check_job(self._connection, spec, dataset, validation)

    async def _stored_data(
        self, spec: TuningSpec, names: ExitStack, on_upload: OnUpload | None, request_id: str = ""
    ) -> tuple[str, str]:
        """Names or URIs of the training and the validation data, which are uploaded if they are local. What the trainer
        refuses whatever the data is, it refuses before the upload.
        """
        labels = checked_labels(spec.labels, "spec.labels")

        async def check() -> None:
            await check_before_upload(self._connection, spec, request_id)

        dataset = await self._stored(spec.dataset, labels, DATASET, names, on_upload, check)
        held_out = spec.validation_dataset
        if held_out is None:
            return dataset, ""
        return dataset, await self._stored(held_out, labels, VALIDATION_DATASET, names, on_upload, check)

    async def clone_job(
        self, /, name: str, *, request_id: str = "", on_upload: OnUpload | None = None, **changes: Any
    ) -> TuningJob:
        """Queue the same job again with some fields of its spec replaced: `clone_job(name, prompt="other",
        priority=5)`. Of `hyperparameters` only those that are not None; a deadline is not copied. Raises InvalidInput
        for an unknown field.
        """
        spec = cloned_spec(await self.get_job(name), changes)
        return await self.create_job(spec, request_id=request_id, on_upload=on_upload)

    async def continue_job(
        self, /, name: str, *, request_id: str = "", on_upload: OnUpload | None = None, **changes: Any
    ) -> TuningJob:
        """`clone_job`, starting from the job's version, or else from its best prompt. `dataset=` continues with other
        data, for example with more of it. Raises PreconditionFailed if the job has no prompt.
        """
        spec = continued_spec(await self.get_job(name), changes)
        return await self.create_job(spec, request_id=request_id, on_upload=on_upload)

    async def tune(
        self, spec: TuningSpec, *, on_event: Callable[[JobEvent], object] | None = None, progress: bool | None = None
    ) -> TuningJob:
        """Queue a job; wait until it succeeds and until a live replica, if there is one, serves its version. `progress`
        shows state, losses and time left (None: in notebooks). Raises JobFailed, also if it is cancelled,
        PreconditionFailed with the reason if the replica refuses the version. Leaving early does not cancel the job.
        """
        job = await self.create_job(spec)
        job = await self.wait_for_job(job.name, on_event=on_event, progress=progress)
        if job.result is not None and job.result.alias_moved:  # replicas load what an alias names
            with suppress(DeadlineExceeded, NotFound, PermissionDenied, Unavailable, Unimplemented):
                await first_verdict(self._connection, job.result.version)
        return job

    async def distill(
        self,
        /,
        document: Text,
        prompt: str,
        *,
        questions: Text | Iterable[str] = (),
        num_questions: int | None = None,
        max_answer_tokens: int | None = None,
        on_event: Callable[[JobEvent], object] | None = None,
        progress: bool | None = None,
        **fields: Any,
    ) -> TuningJob:
        """`tune` on a text instead of examples: the prompt learns to answer as the base model does with the text as its
        system message. `job.result.distillation` says how much of that it keeps.

        `document`: the text, or the path of a file as pathlib.Path. `questions`: inputs without answers, or the path of
        a file; the base model writes those that are missing to `num_questions`. `fields`: other fields of TuningSpec.
        """
        content = dict(
            prompt=prompt,
            dataset=await asyncio.to_thread(distillation_examples, document, questions),
            distillation=Distillation(num_questions, max_answer_tokens),
            **fields,
        )
        spec = built(TuningSpec, content, "spec")
        return await self.tune(spec, on_event=on_event, progress=progress)

    async def list_jobs(
        self,
        *,
        states: Sequence[JobState] = (),
        prompt: str = "",
        annotations: Mapping[str, str] | None = None,
        order: JobOrder = JobOrder.NEWEST_FIRST,
        after: str = "",
        limit: int | None = None,
    ) -> list[TuningJob]:
        """Jobs in this order that follow the job `after`, at most `limit` of them."""
        request = tuning_pb2.ListTuningJobsRequest(
            states=[tuning_pb2.TuningJob.State.Value(f"STATE_{JobState(state)}") for state in states],
            prompt=prompt,
            annotations=annotations or {},
            order=tuning_pb2.ListTuningJobsRequest.Order.Value(f"ORDER_{JobOrder(order)}"),
            after=after,
        )
        return await self._connection.all_pages(TuningJob, request, "jobs", limit)

    async def job_report(self, name: str, *, answers: bool = True) -> JobReport:
        """Curves, metrics, held-out answers, lineage and cost of a job, running or ended. Raises NotFound, or
        PermissionDenied for the answers of another tenant's job; `answers=False` leaves them out.
        """
        request = tuning_pb2.GetJobReportRequest(name=name, omit_answers=not answers)
        return await self._connection.ask(JobReport, request, "report")

    async def cancel_job(self, name: str) -> TuningJob:
        """The job, cancelling or cancelled, with its best prompt kept. PreconditionFailed if it ended otherwise."""
        return await self._connection.ask(TuningJob, tuning_pb2.CancelTuningJobRequest(name=name), "job")

    async def pause_job(self, name: str) -> TuningJob:
        """Take the job off its worker at its next step, keeping a checkpoint."""
        return await self._connection.ask(TuningJob, tuning_pb2.PauseTuningJobRequest(name=name), "job")

    async def resume_job(self, name: str) -> TuningJob:
        """Queue a paused job again. It continues from its checkpoint."""
        return await self._connection.ask(TuningJob, tuning_pb2.ResumeTuningJobRequest(name=name), "job")

    async def delete_job(self, name: str) -> None:
        """Delete an ended job with its events. Versions that it published stay."""
        await self._connection.send(tuning_pb2.DeleteTuningJobRequest(name=name))

    async def list_webhooks(self) -> list[Webhook]:
        """The endpoints of the trainer's webhooks file, with their deliveries and dead letters. For administrators."""
        response = await self._connection.send(tuning_pb2.ListWebhooksRequest())
        return [read(Webhook, webhook) for webhook in response.webhooks]

    async def test_webhook(self, name: str) -> str:
        """Queue a delivery of the type "test" for one webhook; returns its id. Raises NotFound. For administrators."""
        return str((await self._connection.send(tuning_pb2.TestWebhookRequest(name=name))).event_id)

    async def retry_webhook(self, name: str) -> int:
        """Repeat all dead and waiting deliveries of one webhook at once; returns their number. For administrators."""
        return int((await self._connection.send(tuning_pb2.RetryWebhookRequest(name=name))).num_deliveries)

    async def list_usage(
        self,
        by: Sequence[UsageDimension | str] = (),
        *,
        start: datetime | None = None,
        end: datetime | None = None,
        tenant: str = "",
        limit: int | None = None,
    ) -> list[UsageRow]:
        """Usage in whole hours, by default of the last 30 days, summed by `by` (hour, tenant, caller, prompt, version,
        base_model). Administrators see all tenants, others their own. Times without a zone are local.
        """
        request = write(usage_query(by, start, end, tenant), tuning_pb2.ListUsageRequest())
        return await self._connection.all_pages(UsageRow, request, "usage", limit)

    async def list_budgets(self, tenant: str = "") -> list[BudgetStatus]:
        """The budgets of all tenants for administrators, otherwise of the caller's own tenant."""
        request = write(UsageQuery(tenant=tenant), tuning_pb2.ListUsageRequest(page_size=1))
        return list((await self._connection.ask(UsagePage, request)).budgets)

    async def service_info(self) -> ServiceInfo:
        """What the trainer can train, its limits and its defaults."""
        return await self._connection.ask(ServiceInfo, tuning_pb2.GetServiceInfoRequest())

    async def _stored(
        self,
        dataset: Dataset,
        labels: Sequence[str],
        which: str,
        names: ExitStack,
        on_upload: OnUpload | None,
        check: Callable[[], Awaitable[None]],
    ) -> str:
        """The name or URI of the data, which is uploaded if it is local. `names` translates lines in errors."""
        if isinstance(dataset, str) and is_remote(dataset):
            return dataset
        prepared = await asyncio.to_thread(prepare, dataset, labels, which)
        names.enter_context(prepared.named(which))
        return (await self._upload(prepared, labels, on_progress=on_upload, check=check)).dataset


class SyncTuningMethods(SyncMethods):
    """The blocking forms of TuningMethods."""

    upload_dataset = blocking(TuningMethods.upload_dataset)
    list_datasets = blocking(TuningMethods.list_datasets)
    get_dataset = blocking(TuningMethods.get_dataset)
    download_dataset = blocking(TuningMethods.download_dataset)
    delete_dataset = blocking(TuningMethods.delete_dataset)
    create_job = blocking(TuningMethods.create_job)
    validate_job = blocking(TuningMethods.validate_job)
    clone_job = blocking(TuningMethods.clone_job)
    continue_job = blocking(TuningMethods.continue_job)
    tune = blocking(TuningMethods.tune)
    distill = blocking(TuningMethods.distill)
    list_jobs = blocking(TuningMethods.list_jobs)
    get_job = blocking(TuningMethods.get_job)
    watch_job = blocking(TuningMethods.watch_job)
    wait_for_job = blocking(TuningMethods.wait_for_job)
    job_history = blocking(TuningMethods.job_history)
    job_report = blocking(TuningMethods.job_report)
    cancel_job = blocking(TuningMethods.cancel_job)
    pause_job = blocking(TuningMethods.pause_job)
    resume_job = blocking(TuningMethods.resume_job)
    delete_job = blocking(TuningMethods.delete_job)
    list_webhooks = blocking(TuningMethods.list_webhooks)
    test_webhook = blocking(TuningMethods.test_webhook)
    retry_webhook = blocking(TuningMethods.retry_webhook)
    list_usage = blocking(TuningMethods.list_usage)
    list_budgets = blocking(TuningMethods.list_budgets)
    service_info = blocking(TuningMethods.service_info)
