"""Both services with canned answers, on a real socket, behind the real interceptor. Tests set what they answer and read
what was asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
from prometheus_client import CollectorRegistry
from prompttuning.v1 import (
    common_pb2,
    generation_pb2,
    generation_pb2_grpc,
    prompts_pb2,
    prompts_pb2_grpc,
    tuning_pb2,
    tuning_pb2_grpc,
)

from shared.config import ServerSettings
from shared.errors import Conflict, InvalidInput, NotFound, SoftPromptError
from shared.rpc.metrics import RpcMetrics
from shared.rpc.server import RpcServer

QUEUED, RUNNING = tuning_pb2.TuningJob.STATE_QUEUED, tuning_pb2.TuningJob.STATE_RUNNING
SUCCEEDED, FAILED = tuning_pb2.TuningJob.STATE_SUCCEEDED, tuning_pb2.TuningJob.STATE_FAILED
JOB = "tuningJobs/job1"
DATASET = "datasets/sha256-" + 64 * "a"


class FakeTrainer(tuning_pb2_grpc.TuningServiceServicer, prompts_pb2_grpc.PromptServiceServicer):
    def __init__(self) -> None:
        self.uploads: list[tuple[tuning_pb2.DatasetHeader, bytes]] = []
        self.specs: list[tuning_pb2.TuningSpec] = []
        self.checked: list[tuning_pb2.TuningSpec] = []
        """Specs that were checked before an upload."""
        self.request_ids: list[str] = []
        self.watched_after: list[int] = []
        self.fail_next: list[SoftPromptError] = []
        self.cut_watch_after: list[int] = []
        """Numbers after which a watch is cut, one for each watch."""
        self.hold_watch: asyncio.Event | None = None
        self.fail_watch: SoftPromptError | None = None
        """Ends every watch after its events."""
        self.jobs = {JOB: succeeded_job()}
        self.reports: dict[str, tuning_pb2.JobReport] = {}
        self.events = finished_events()
        self.alias_version = 2
        self.info = tuning_pb2.GetServiceInfoResponse(
            software_version="0.1.0", base_models=[common_pb2.BaseModel(id="tiny")], num_workers=1
        )
        self.created_statistics: tuning_pb2.DatasetStatistics | None = None
        self.statuses: list[prompts_pb2.VersionStatus] = [prompts_pb2.VersionStatus(version="prompts/tone/versions/1")]
        """What GetPromptStatus answers, one after the other, the last one from then on."""
        self.replicas: list[prompts_pb2.ReplicaStatus] = []
        """All live replicas, with each of these answers."""

    def _maybe_fail(self) -> None:
        if self.fail_next:
            raise self.fail_next.pop(0)

    async def GetDataset(self, request: Any, context: Any) -> tuning_pb2.GetDatasetResponse:
        raise NotFound("dataset", request.name)

    async def UploadDataset(self, requests: Any, context: Any) -> tuning_pb2.UploadDatasetResponse:
        header, content = tuning_pb2.DatasetHeader(), b""
        async for request in requests:
            if request.HasField("header"):
                header = request.header
            content += request.chunk
        self._maybe_fail()
        self.uploads.append((header, content))
        return tuning_pb2.UploadDatasetResponse(
            dataset=DATASET, num_examples=content.count(b"\n"), task=tuning_pb2.TASK_KIND_GENERATION, labels=["a", "b"]
        )

    async def CreateTuningJob(self, request: Any, context: Any) -> tuning_pb2.CreateTuningJobResponse:
        if request.validate_only and not request.spec.HasField("dataset"):
            self.checked.append(request.spec)
            return tuning_pb2.CreateTuningJobResponse()
        self._maybe_fail()
        self.specs.append(request.spec)
        self.request_ids.append(request.request_id)
        job = tuning_pb2.TuningJob(
            name=JOB, state=QUEUED, spec=request.spec, dataset_statistics=self.created_statistics
        )
        return tuning_pb2.CreateTuningJobResponse(job=job)

    async def GetTuningJob(self, request: Any, context: Any) -> tuning_pb2.GetTuningJobResponse:
        self._maybe_fail()
        if request.name not in self.jobs:
            raise NotFound("tuning job", request.name)
        return tuning_pb2.GetTuningJobResponse(job=self.jobs[request.name])

    async def GetJobReport(self, request: Any, context: Any) -> tuning_pb2.GetJobReportResponse:
        self._maybe_fail()
        if request.name not in self.reports:
            raise NotFound("tuning job", request.name)
        report = tuning_pb2.JobReport.FromString(self.reports[request.name].SerializeToString())
        if request.omit_answers:
            report.ClearField("answers")
        return tuning_pb2.GetJobReportResponse(report=report)

    async def ListTuningJobs(self, request: Any, context: Any) -> tuning_pb2.ListTuningJobsResponse:
        first = int(request.page_token or 0)
        others = [name for name in self.jobs if name != JOB]
        names = [*others, *(f"tuningJobs/{number}" for number in range(450))][first : first + request.page_size]
        following = first + len(names)
        jobs = [
            tuning_pb2.TuningJob(name=name, state=request.states[0] if request.states else RUNNING) for name in names
        ]
        more = following < 450 + len(others)
        return tuning_pb2.ListTuningJobsResponse(jobs=jobs, next_page_token=str(following) if more else "")

    async def WatchTuningJob(self, request: Any, context: Any) -> AsyncIterator[tuning_pb2.WatchTuningJobResponse]:
        self.watched_after.append(request.after)
        cut = self.cut_watch_after.pop(0) if self.cut_watch_after else None
        for event in self.events:
            if event.number > request.after:
                yield tuning_pb2.WatchTuningJobResponse(event=event)
                if event.number == cut:
                    await context.abort(grpc.StatusCode.UNAVAILABLE, "the connection was cut")
        if self.fail_watch is not None:
            raise self.fail_watch
        if self.hold_watch is not None:
            await self.hold_watch.wait()

    async def CancelTuningJob(self, request: Any, context: Any) -> tuning_pb2.CancelTuningJobResponse:
        job = tuning_pb2.TuningJob(name=request.name, state=tuning_pb2.TuningJob.STATE_CANCELLING)
        return tuning_pb2.CancelTuningJobResponse(job=job)

    async def PauseTuningJob(self, request: Any, context: Any) -> tuning_pb2.PauseTuningJobResponse:
        job = tuning_pb2.TuningJob(name=request.name, state=tuning_pb2.TuningJob.STATE_PAUSED)
        return tuning_pb2.PauseTuningJobResponse(job=job)

    async def ResumeTuningJob(self, request: Any, context: Any) -> tuning_pb2.ResumeTuningJobResponse:
        return tuning_pb2.ResumeTuningJobResponse(job=tuning_pb2.TuningJob(name=request.name, state=QUEUED))

    async def DeleteTuningJob(self, request: Any, context: Any) -> tuning_pb2.DeleteTuningJobResponse:
        return tuning_pb2.DeleteTuningJobResponse()

    async def GetServiceInfo(self, request: Any, context: Any) -> tuning_pb2.GetServiceInfoResponse:
        self._maybe_fail()
        return self.info

    async def ListPrompts(self, request: Any, context: Any) -> prompts_pb2.ListPromptsResponse:
        return prompts_pb2.ListPromptsResponse(prompts=[self._prompt()])

    async def GetPrompt(self, request: Any, context: Any) -> prompts_pb2.GetPromptResponse:
        return prompts_pb2.GetPromptResponse(prompt=self._prompt())

    async def GetPromptStatus(self, request: Any, context: Any) -> prompts_pb2.GetPromptStatusResponse:
        self._maybe_fail()
        return prompts_pb2.GetPromptStatusResponse(
            versions=[self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]], replicas=self.replicas
        )

    async def ListPromptVersions(self, request: Any, context: Any) -> prompts_pb2.ListPromptVersionsResponse:
        return prompts_pb2.ListPromptVersionsResponse(
            versions=[
                prompts_pb2.PromptVersion(name=f"{request.parent}/versions/{number}", metrics={"loss": 1.5})
                for number in (2, 1)
            ]
        )

    async def GetPromptVersion(self, request: Any, context: Any) -> prompts_pb2.GetPromptVersionResponse:
        version = prompts_pb2.PromptVersion(name="prompts/tone/versions/2", digest="sha256:00", num_virtual_tokens=8)
        version.recipe.update({"num_steps": 10})
        return prompts_pb2.GetPromptVersionResponse(version=version)

    async def SetPromptAlias(self, request: Any, context: Any) -> prompts_pb2.SetPromptAliasResponse:
        if request.HasField("expected_version") and request.expected_version != self.alias_version:
            raise Conflict(f"{request.alias} names {self.alias_version}", current=self.alias_version)
        alias = prompts_pb2.Alias(name=request.alias, targets=request.targets, revision=9)
        return prompts_pb2.SetPromptAliasResponse(alias=alias, revision=9)

    def _prompt(self) -> prompts_pb2.Prompt:
        alias = prompts_pb2.Alias(name="default", targets=[prompts_pb2.AliasTarget(version=2, weight=1)], revision=5)
        return prompts_pb2.Prompt(name="prompts/tone", latest_version=2, num_versions=2, aliases=[alias])


class FakeInference(generation_pb2_grpc.GenerationServiceServicer):
    def __init__(self) -> None:
        self.requests: list[Any] = []
        self.pieces = ["Hello", " wide", " world"]
        self.script: list[generation_pb2.GenerateStreamResponse] | None = None
        """What GenerateStream sends in place of a whole answer."""
        self.endless = False
        self.info = generation_pb2.GetModelInfoResponse(
            software_version="0.1.0", base_model=common_pb2.BaseModel(id="tiny"), dtype="float32", device="cpu"
        )
        self.stream_ended = asyncio.Event()
        self.loaded: list[list[generation_pb2.LoadedPrompt] | None] = []
        """What ListLoadedPrompts answers, one after the other, the last one from then on; None: the prompt is unknown.
        """

    async def Generate(self, request: Any, context: Any) -> generation_pb2.GenerateResponse:
        self._check(request)
        output = generation_pb2.GenerationDelta(text="".join(self.pieces), token_ids=[1, 2, 3])
        return generation_pb2.GenerateResponse(start=_start(request), output=output, end=_end())

    async def GenerateStream(self, request: Any, context: Any) -> AsyncIterator[generation_pb2.GenerateStreamResponse]:
        self._check(request)
        if self.script is not None:
            for response in self.script:
                yield response
            return
        try:
            yield generation_pb2.GenerateStreamResponse(start=_start(request))
            indexes = range(request.sampling.n or 1)
            while True:
                for number, piece in enumerate(self.pieces):
                    for index in indexes:
                        yield generation_pb2.GenerateStreamResponse(
                            delta=generation_pb2.GenerationDelta(text=piece, token_ids=[number], index=index)
                        )
                if not self.endless:
                    break
                await asyncio.sleep(0.01)
            for index in indexes:
                yield generation_pb2.GenerateStreamResponse(end=_end(index))
        finally:
            self.stream_ended.set()

    async def Score(self, request: Any, context: Any) -> generation_pb2.ScoreResponse:
        self._check(request)
        labels = list(request.candidates) or ["negative", "positive"]
        scores = [
            generation_pb2.CandidateScore(
                candidate=label, logprob=-1.0, probability=0.9 if index else 0.1, num_tokens=1
            )
            for index, label in enumerate(labels)
        ]
        return generation_pb2.ScoreResponse(start=_start(request), scores=scores, best=1)

    async def CountTokens(self, request: Any, context: Any) -> generation_pb2.CountTokensResponse:
        self._check(request)
        return generation_pb2.CountTokensResponse(
            input_tokens=3, virtual_tokens=8, max_positions=64, token_ids=[5, 6, 7]
        )

    async def GetModelInfo(self, request: Any, context: Any) -> generation_pb2.GetModelInfoResponse:
        return self.info

    async def ListLoadedPrompts(self, request: Any, context: Any) -> generation_pb2.ListLoadedPromptsResponse:
        prompts = self.loaded.pop(0) if len(self.loaded) > 1 else (self.loaded[0] if self.loaded else [])
        if prompts is None:
            raise NotFound("prompt", request.prompt)
        return generation_pb2.ListLoadedPromptsResponse(prompts=prompts, revision=7)

    def _check(self, request: Any) -> None:
        self.requests.append(request)
        if request.input.prompt == "unknown":
            raise NotFound("prompt", "unknown")
        if request.input.WhichOneof("content") == "text" and not request.input.text:
            raise InvalidInput.of("input.text", "must not be empty")


def _start(request: Any) -> generation_pb2.GenerationStart:
    version = f"prompts/{request.input.prompt.partition('@')[0]}/versions/2" if request.input.prompt else ""
    return generation_pb2.GenerationStart(
        version=version, digest="sha256:00", input_tokens=3, virtual_tokens=8, seed=11, request_id="r1"
    )


def _end(index: int = 0) -> generation_pb2.GenerationEnd:
    end = generation_pb2.GenerationEnd(finish_reason=generation_pb2.FINISH_REASON_EOS, output_tokens=3, index=index)
    end.first_token_time.FromMilliseconds(31)
    return end


def succeeded_job() -> tuning_pb2.TuningJob:
    result = tuning_pb2.TuningResult(
        published=True, version="prompts/tone/versions/1", alias_moved=True, metrics={"loss": 1.25}
    )
    result.bare_metrics["loss"] = 3.5
    result.template_metrics["loss"] = 2.75
    result.instructed_metrics["loss"], result.few_shot_metrics["loss"], result.num_shots = 2.5, 1.2, 12
    result.verdict = (
        "beats the bare model; loss 1.25 does not beat 1.2 of the model with an instruction and examples in its input"
    )
    result.comparisons.add(
        rival="few_shot_model", metric="loss", value=1.25, rival_value=1.2, difference=-0.05, num_examples=4
    )
    result.num_judging, result.judged_apart, result.metric_low, result.metric_high = 4, True, 1.0, 1.5
    tried = {
        "learning_rate": 0.015,
        "init_method": tuning_pb2.PromptInit.METHOD_LABELS,
        "num_steps": 2,
        "losses": [2.25, 1.5],
        "metrics": {"loss": 1.25},
    }
    result.candidates.add(**tried, chosen=True)
    text, worse = tuning_pb2.PromptInit.METHOD_TEXT, "worse"
    result.candidates.add(learning_rate=0.005, init_method=text, num_steps=1, end=worse, losses=[2.5])
    result.num_skipped_steps = 3
    result.score_stability, result.best_step = 0.0125, 2
    result.nearest_tokens.extend(tuning_pb2.NearestToken(text=f" word{index}", cosine=0.5) for index in range(10))
    progress = tuning_pb2.TuningProgress(step=2, num_steps=2, train_loss=1.5, examples_per_second=12.5, grad_norm=0.75)
    statistics = tuning_pb2.DatasetStatistics(num_train=18, num_validation=4, num_overlapping=3)
    spec = tuning_pb2.TuningSpec(prompt="tone", dataset=tuning_pb2.DatasetSource(dataset=DATASET))
    return tuning_pb2.TuningJob(
        name=JOB,
        state=SUCCEEDED,
        progress=progress,
        result=result,
        spec=spec,
        dataset_statistics=statistics,
        last_event=6,
    )


def failed_job() -> tuning_pb2.TuningJob:
    error = tuning_pb2.TuningError(
        code="NAN_LOSS", message="the loss is not a number", field="spec.hyperparameters.learning_rate"
    )
    return tuning_pb2.TuningJob(name=JOB, state=FAILED, error=error, last_event=6)


def finished_events(last: tuning_pb2.TuningJob | None = None) -> list[tuning_pb2.TuningEvent]:
    """A whole short job: six events."""
    running = tuning_pb2.TuningJob(name=JOB, state=RUNNING)
    kinds: list[dict[str, Any]] = [
        {"state_changed": running},
        {"progress": tuning_pb2.TuningProgress(step=1, num_steps=2, train_loss=2.5, examples_per_second=12.5)},
        {"evaluation": tuning_pb2.Evaluation(step=1, metrics={"loss": 1.75}, is_best=True)},
        {"checkpoint": tuning_pb2.Checkpoint(step=1)},
        {"note": "a worker was lost; the job goes on elsewhere"},
        {"state_changed": last or succeeded_job()},
    ]
    return [tuning_pb2.TuningEvent(number=number, **kind) for number, kind in enumerate(kinds, start=1)]


@asynccontextmanager
async def serving(servicer: Any, port: int = 0) -> AsyncIterator[str]:
    """The servicer on a free port; yields its endpoint."""
    server = RpcServer(ServerSettings(port=port), [], RpcMetrics(CollectorRegistry()))
    if isinstance(servicer, FakeTrainer):
        tuning_pb2_grpc.add_TuningServiceServicer_to_server(servicer, server.grpc_server)
        prompts_pb2_grpc.add_PromptServiceServicer_to_server(servicer, server.grpc_server)
    else:
        generation_pb2_grpc.add_GenerationServiceServicer_to_server(servicer, server.grpc_server)
    bound = await server.start()
    try:
        yield f"127.0.0.1:{bound}"
    finally:
        await server.drain(0)
