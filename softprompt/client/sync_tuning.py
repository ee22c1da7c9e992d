"""The blocking forms of the methods about tuning jobs and datasets. Their docstrings are those of TuningMethods."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from softprompt.client.owned_jobs import owns_jobs
from softprompt.client.sync_methods import SyncMethods, documented_by
from softprompt.client.tuning import OnUpload, TuningMethods
from softprompt.data.distillation import Text
from softprompt.types.datasets import StoredDataset, UploadedDataset
from softprompt.types.events import JobEvent
from softprompt.types.history import JobHistory
from softprompt.types.jobs import JobCheck, JobOrder, JobState, TuningJob
from softprompt.types.report import JobReport
from softprompt.types.service import ServiceInfo
from softprompt.types.spec import Dataset, TuningSpec


@owns_jobs
@documented_by(TuningMethods)
class SyncTuningMethods(SyncMethods):
    """See TuningMethods."""

    def upload_dataset(
        self,
        dataset: Dataset,
        *,
        labels: Sequence[str] = (),
        file_name: str = "",
        timeout_seconds: float | None = None,
        on_progress: OnUpload | None = None,
    ) -> UploadedDataset:
        call = self._client.upload_dataset(
            dataset, labels=labels, file_name=file_name, timeout_seconds=timeout_seconds, on_progress=on_progress
        )
        return self._loop.run(call)

    def list_datasets(self, *, limit: int | None = None) -> list[StoredDataset]:
        return self._loop.run(self._client.list_datasets(limit=limit))

    def get_dataset(self, name: str) -> StoredDataset:
        return self._loop.run(self._client.get_dataset(name))

    def download_dataset(self, name: str) -> Iterator[bytes]:
        return self._loop.iterate(self._client.download_dataset(name))

    def delete_dataset(self, name: str) -> None:
        return self._loop.run(self._client.delete_dataset(name))

    def create_job(
        self,
        spec: TuningSpec,
        *,
        request_id: str = "",
        timeout_seconds: float | None = None,
        on_upload: OnUpload | None = None,
    ) -> TuningJob:
        call = self._client.create_job(
            spec, request_id=request_id, timeout_seconds=timeout_seconds, on_upload=on_upload
        )
        return self._loop.run(call)

    def validate_job(self, spec: TuningSpec, *, on_upload: OnUpload | None = None) -> JobCheck:
        return self._loop.run(self._client.validate_job(spec, on_upload=on_upload))

    def clone_job(
        self, name: str, *, request_id: str = "", on_upload: OnUpload | None = None, **changes: Any
    ) -> TuningJob:
        return self._loop.run(self._client.clone_job(name, request_id=request_id, on_upload=on_upload, **changes))

    def continue_job(
        self, name: str, *, request_id: str = "", on_upload: OnUpload | None = None, **changes: Any
    ) -> TuningJob:
        return self._loop.run(self._client.continue_job(name, request_id=request_id, on_upload=on_upload, **changes))

    def tune(
        self,
        spec: TuningSpec,
        *,
        on_event: Callable[[JobEvent], object] | None = None,
        progress: bool | None = None,
    ) -> TuningJob:
        return self._loop.run(self._client.tune(spec, on_event=on_event, progress=progress))

    def distill(
        self,
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
        call = self._client.distill(
            document,
            prompt,
            questions=questions,
            num_questions=num_questions,
            max_answer_tokens=max_answer_tokens,
            on_event=on_event,
            progress=progress,
            **fields,
        )
        return self._loop.run(call)

    def list_jobs(
        self,
        *,
        states: Sequence[JobState] = (),
        prompt: str = "",
        annotations: Mapping[str, str] | None = None,
        order: JobOrder = JobOrder.NEWEST_FIRST,
        after: str = "",
        limit: int | None = None,
    ) -> list[TuningJob]:
        return self._loop.run(
            self._client.list_jobs(
                states=states, prompt=prompt, annotations=annotations, order=order, after=after, limit=limit
            )
        )

    def get_job(self, name: str) -> TuningJob:
        return self._loop.run(self._client.get_job(name))

    def watch_job(self, name: str, *, after: int = 0, reconnect_seconds: float = 120.0) -> Iterator[JobEvent]:
        return self._loop.iterate(self._client.watch_job(name, after=after, reconnect_seconds=reconnect_seconds))

    def wait_for_job(
        self,
        name: str,
        *,
        timeout_seconds: float | None = None,
        on_event: Callable[[JobEvent], object] | None = None,
        progress: bool | None = None,
    ) -> TuningJob:
        call = self._client.wait_for_job(name, timeout_seconds=timeout_seconds, on_event=on_event, progress=progress)
        return self._loop.run(call)

    def job_history(self, name: str) -> JobHistory:
        return self._loop.run(self._client.job_history(name))

    def job_report(self, name: str, *, answers: bool = True) -> JobReport:
        return self._loop.run(self._client.job_report(name, answers=answers))

    def cancel_job(self, name: str) -> TuningJob:
        return self._loop.run(self._client.cancel_job(name))

    def pause_job(self, name: str) -> TuningJob:
        return self._loop.run(self._client.pause_job(name))

    def resume_job(self, name: str) -> TuningJob:
        return self._loop.run(self._client.resume_job(name))

    def delete_job(self, name: str) -> None:
        return self._loop.run(self._client.delete_job(name))

    def service_info(self) -> ServiceInfo:
        return self._loop.run(self._client.service_info())
