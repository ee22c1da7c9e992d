"""The synchronous client: AsyncClient in a thread with an event loop. It has no logic of its own; a test compares the
signatures.

Written by hand, because a generator such as unasync would make a second implementation over gRPC's synchronous calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from softprompt.client.async_client import AsyncClient
from softprompt.client.loop_thread import LoopThread
from softprompt.client.owned_jobs import owns_jobs
from softprompt.client.security import ClientSecurity
from softprompt.client.stream import GenerationStream
from softprompt.client.tuning import OnUpload
from softprompt.client.verdict import VERDICT_SECONDS
from softprompt.types.common import Sampling, Template
from softprompt.types.datasets import StoredDataset, UploadedDataset
from softprompt.types.events import JobEvent
from softprompt.types.generation import (
    CandidateScore,
    Generation,
    GenerationDelta,
    GenerationEnd,
    GenerationStart,
    Input,
    LoadedPrompt,
    LoadedPrompts,
    ModelInfo,
    Scores,
    TokenCount,
)
from softprompt.types.jobs import JobOrder, JobState, TuningJob
from softprompt.types.prompts import (
    Alias,
    AliasTarget,
    Prompt,
    PromptChange,
    PromptStatus,
    PromptVersion,
    VersionStatus,
)
from softprompt.types.report import JobReport
from softprompt.types.service import ServiceInfo
from softprompt.types.spec import Dataset, TuningSpec


class SyncGenerationStream:
    """`for delta in stream`; `start` is set before the first delta, `end` after the last one. Leaving the loop cancels
    the call.
    """

    def __init__(self, stream: GenerationStream, loop: LoopThread) -> None:
        self._stream, self._loop = stream, loop

    @property
    def start(self) -> GenerationStart | None:
        """None before the first message."""
        return self._stream.start

    @property
    def end(self) -> GenerationEnd | None:
        """The end of completion 0, None before it."""
        return self._stream.end

    @property
    def ends(self) -> dict[int, GenerationEnd]:
        """The ends of all completions so far, by index."""
        return self._stream.ends

    def started(self) -> GenerationStart:
        """The first message: the version, the token counts and the seed of the answer."""
        return self._loop.run(self._stream.started())

    def __iter__(self) -> Iterator[GenerationDelta]:
        return self._loop.iterate(aiter(self._stream))

    def cancel(self) -> None:
        """Cancel the call. Does nothing after the end."""
        self._loop.run(self._cancel())

    async def _cancel(self) -> None:
        self._stream.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()


def _documented(client: type[Client]) -> type[Client]:
    """Give each method the docstring of its counterpart in AsyncClient."""
    for name, member in vars(client).items():
        function = member.fget if isinstance(member, property) else member
        if callable(function) and not function.__doc__ and hasattr(AsyncClient, name):
            function.__doc__ = getattr(AsyncClient, name).__doc__
    return client


@owns_jobs
@_documented
class Client:
    """AsyncClient with blocking methods. May be used from several threads."""

    def __init__(
        self,
        trainer: str | None = None,
        inference: str | None = None,
        *,
        timeout_seconds: float = 30.0,
        generation_timeout_seconds: float = 300.0,
        security: ClientSecurity | None = None,
        retry_overloaded: bool = True,
    ) -> None:
        self._client = AsyncClient(
            trainer,
            inference,
            timeout_seconds=timeout_seconds,
            generation_timeout_seconds=generation_timeout_seconds,
            security=security,
            retry_overloaded=retry_overloaded,
        )
        self._loop = LoopThread("softprompt-client")

    @property
    def trainer(self) -> str:
        """Address of the trainer service."""
        return self._client.trainer

    @property
    def inference(self) -> str:
        """Address of the inference service."""
        return self._client.inference

    def close(self) -> None:
        """Cancel running calls and close both connections. May be called twice."""
        if not self._loop.stopped:
            self._loop.run(self._client.close())
            self._loop.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

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

    def clone_job(
        self, name: str, *, request_id: str = "", on_upload: OnUpload | None = None, **changes: Any
    ) -> TuningJob:
        return self._loop.run(self._client.clone_job(name, request_id=request_id, on_upload=on_upload, **changes))

    def continue_job(
        self, name: str, *, request_id: str = "", on_upload: OnUpload | None = None, **changes: Any
    ) -> TuningJob:
        return self._loop.run(self._client.continue_job(name, request_id=request_id, on_upload=on_upload, **changes))

    def tune(self, spec: TuningSpec, *, on_event: Callable[[JobEvent], object] | None = None) -> TuningJob:
        return self._loop.run(self._client.tune(spec, on_event=on_event))

    def get_job(self, name: str) -> TuningJob:
        return self._loop.run(self._client.get_job(name))

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

    def watch_job(self, name: str, *, after: int = 0, reconnect_seconds: float = 120.0) -> Iterator[JobEvent]:
        return self._loop.iterate(self._client.watch_job(name, after=after, reconnect_seconds=reconnect_seconds))

    def wait_for_job(
        self, name: str, *, timeout_seconds: float | None = None, on_event: Callable[[JobEvent], object] | None = None
    ) -> TuningJob:
        return self._loop.run(self._client.wait_for_job(name, timeout_seconds=timeout_seconds, on_event=on_event))

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

    def list_prompts(self, *, name_prefix: str = "") -> list[Prompt]:
        return self._loop.run(self._client.list_prompts(name_prefix=name_prefix))

    def get_prompt(self, prompt: str) -> Prompt:
        return self._loop.run(self._client.get_prompt(prompt))

    def list_versions(self, prompt: str) -> list[PromptVersion]:
        return self._loop.run(self._client.list_versions(prompt))

    def get_version(self, version: str) -> PromptVersion:
        return self._loop.run(self._client.get_version(version))

    def set_alias(
        self,
        prompt: str,
        alias: str,
        target: int | Sequence[AliasTarget],
        *,
        expected_version: int | None = None,
        expected_revision: int | None = None,
    ) -> Alias:
        moved = self._client.set_alias(
            prompt, alias, target, expected_version=expected_version, expected_revision=expected_revision
        )
        return self._loop.run(moved)

    def prompt_status(self, prompt: str) -> PromptStatus:
        return self._loop.run(self._client.prompt_status(prompt))

    def wait_until_served_by_all(self, version: str, *, timeout_seconds: float = 60.0) -> VersionStatus:
        return self._loop.run(self._client.wait_until_served_by_all(version, timeout_seconds=timeout_seconds))

    def first_verdict(self, version: str, *, timeout_seconds: float = VERDICT_SECONDS) -> VersionStatus:
        return self._loop.run(self._client.first_verdict(version, timeout_seconds=timeout_seconds))

    def download_version(self, version: str) -> tuple[PromptVersion, bytes]:
        return self._loop.run(self._client.download_version(version))

    def export_version(
        self, version: str, directory: str | Path, *, base_model: str = "", overwrite: bool = False
    ) -> PromptVersion:
        return self._loop.run(
            self._client.export_version(version, directory, base_model=base_model, overwrite=overwrite)
        )

    def import_version(
        self,
        path: str | Path,
        prompt: str,
        *,
        base_model: str = "",
        template: Template | None = None,
        labels: Sequence[str] = (),
        alias: str = "",
        request_id: str = "",
        timeout_seconds: float | None = None,
    ) -> PromptVersion:
        return self._loop.run(
            self._client.import_version(
                path,
                prompt,
                base_model=base_model,
                template=template,
                labels=labels,
                alias=alias,
                request_id=request_id,
                timeout_seconds=timeout_seconds,
            )
        )

    def watch_prompts(
        self,
        *,
        after_revision: int | None = None,
        store_id: str = "",
        name_prefix: str = "",
        reconnect_seconds: float = 120.0,
    ) -> Iterator[PromptChange]:
        changes = self._client.watch_prompts(
            after_revision=after_revision,
            store_id=store_id,
            name_prefix=name_prefix,
            reconnect_seconds=reconnect_seconds,
        )
        return self._loop.iterate(changes)

    def delete_version(self, version: str) -> int:
        return self._loop.run(self._client.delete_version(version))

    def generate(
        self,
        input: Input,
        *,
        prompt: str = "",
        sampling: Sampling | None = None,
        template: Template | None = None,
        routing_key: str = "",
        truncate: bool = False,
        priority: int = 0,
        timeout_seconds: float | None = None,
    ) -> Generation:
        return self._loop.run(
            self._client.generate(
                input,
                prompt=prompt,
                sampling=sampling,
                template=template,
                routing_key=routing_key,
                truncate=truncate,
                priority=priority,
                timeout_seconds=timeout_seconds,
            )
        )

    def stream(
        self,
        input: Input,
        *,
        prompt: str = "",
        sampling: Sampling | None = None,
        template: Template | None = None,
        routing_key: str = "",
        truncate: bool = False,
        priority: int = 0,
        timeout_seconds: float | None = None,
    ) -> SyncGenerationStream:
        stream = self._client.stream(
            input,
            prompt=prompt,
            sampling=sampling,
            template=template,
            routing_key=routing_key,
            truncate=truncate,
            priority=priority,
            timeout_seconds=timeout_seconds,
        )
        return SyncGenerationStream(stream, self._loop)

    def score(
        self,
        input: Input,
        *,
        prompt: str = "",
        candidates: Sequence[str] = (),
        template: Template | None = None,
        routing_key: str = "",
    ) -> Scores:
        scores = self._client.score(
            input, prompt=prompt, candidates=candidates, template=template, routing_key=routing_key
        )
        return self._loop.run(scores)

    def classify(
        self, input: Input, *, prompt: str, labels: Sequence[str] = (), routing_key: str = ""
    ) -> CandidateScore:
        return self._loop.run(self._client.classify(input, prompt=prompt, labels=labels, routing_key=routing_key))

    def count_tokens(self, input: Input, *, prompt: str = "", template: Template | None = None) -> TokenCount:
        return self._loop.run(self._client.count_tokens(input, prompt=prompt, template=template))

    def model_info(self) -> ModelInfo:
        return self._loop.run(self._client.model_info())

    def loaded_prompts(self, prompt: str = "") -> LoadedPrompts:
        return self._loop.run(self._client.loaded_prompts(prompt))

    def wait_until_served(self, version: str, *, timeout_seconds: float = 60.0) -> LoadedPrompt:
        return self._loop.run(self._client.wait_until_served(version, timeout_seconds=timeout_seconds))
