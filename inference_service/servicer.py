"""GenerationService over gRPC: each method converts the request, delegates, and converts the result.

Errors are domain errors; the server maps them.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from prompttuning.v1 import generation_pb2, generation_pb2_grpc

from inference_service.deadline_margin import DeadlineMargin
from inference_service.engine.core.request import Delta
from inference_service.engine.text.text_stream import merge
from inference_service.generation import Call, GenerationService
from inference_service.prompts.registry import PromptRegistry
from inference_service.requests import RequestReader
from inference_service.token_texts import TokenTexts
from shared.caller import current_caller
from shared.errors import InvalidInput, Unavailable
from shared.log import bound_fields
from shared.names import check_name
from shared.store.view import shown_revision
from shared.values.generation import FinishReason, GenerationEnd, GenerationStart, LoadedPrompts, ModelInfo
from shared.wire.mirror import fill, write

SERVICE_NAME = generation_pb2.DESCRIPTOR.services_by_name["GenerationService"].full_name


@dataclass(frozen=True)
class Backend:
    """The parts that the methods delegate to. `model_info` is constant while the service runs."""

    service: GenerationService
    reader: RequestReader
    registry: PromptRegistry
    model_info: ModelInfo
    texts: TokenTexts
    prefix_kv_bytes: Callable[[str], int]
    """Bytes of a loaded version's keys and values, by its prefix id in the engine."""
    check_budget: Callable[[str], None] = lambda tenant: None
    """Raises Overloaded if a hard budget of the tenant is used up."""


class GenerationServicer(generation_pb2_grpc.GenerationServiceServicer):
    """Raises Unavailable until `open`.

    The port is open before the model is loaded, so that probes can distinguish a starting process from one that hangs.
    """

    def __init__(self) -> None:
        self._opened: Backend | None = None
        self.margin = DeadlineMargin()

    def open(self, backend: Backend) -> None:
        """Start to serve with the loaded model."""
        self._opened = backend

    @property
    def _backend(self) -> Backend:
        if self._opened is None:
            raise Unavailable("the service is starting: its model is loading")
        return self._opened

    async def GenerateStream(
        self, request: generation_pb2.GenerateStreamRequest, context: Any
    ) -> AsyncIterator[generation_pb2.GenerateStreamResponse]:
        input, sampling = self._backend.reader.generation(request)
        call = self._call(context, request.priority)
        with self.margin.answering(call.deadline):
            async with aclosing(self._backend.service.stream(input, sampling, call)) as parts:  # type: ignore[type-var]
                async for part in parts:
                    self._note_end(part, call)
                    yield self._message(part)

    async def Generate(self, request: generation_pb2.GenerateRequest, context: Any) -> generation_pb2.GenerateResponse:
        input, sampling = self._backend.reader.generation(request)
        response, deltas = generation_pb2.GenerateResponse(), dict[int, list[Delta]]()
        ends = dict[int, GenerationEnd]()
        call = self._call(context, request.priority)
        with self.margin.answering(call.deadline):
            async with aclosing(self._backend.service.stream(input, sampling, call)) as parts:  # type: ignore[type-var]
                async for part in parts:
                    self._note_end(part, call)
                    if isinstance(part, GenerationStart):
                        fill(response, start=part)
                    elif isinstance(part, GenerationEnd):
                        ends[part.index] = part
                    else:
                        deltas.setdefault(part.index, []).append(part)
        for index, end in sorted(ends.items()):
            output = self._backend.texts.shown(merge(deltas.get(index) or [Delta(index=index)]))
            fill(response if index == 0 else response.other_completions.add(), output=output, end=end)
        return response

    async def Score(self, request: generation_pb2.ScoreRequest, context: Any) -> generation_pb2.ScoreResponse:
        input, candidates = self._backend.reader.score(request)
        call = self._call(context)
        with self.margin.answering(call.deadline):
            scores = await self._backend.service.score(input, candidates, call)
        return write(scores, generation_pb2.ScoreResponse())

    async def CountTokens(
        self, request: generation_pb2.CountTokensRequest, context: Any
    ) -> generation_pb2.CountTokensResponse:
        counted = await self._backend.service.count_tokens(self._backend.reader.input(request.input))
        return write(counted, generation_pb2.CountTokensResponse())

    async def GetModelInfo(
        self, request: generation_pb2.GetModelInfoRequest, context: Any
    ) -> generation_pb2.GetModelInfoResponse:
        self._backend.service.check_base_model(request.base_model)
        info = write(self._backend.model_info, generation_pb2.GetModelInfoResponse())
        info.current_time.GetCurrentTime()
        return info

    async def ListLoadedPrompts(
        self, request: generation_pb2.ListLoadedPromptsRequest, context: Any
    ) -> generation_pb2.ListLoadedPromptsResponse:
        prompt = check_name(request.prompt, "prompt") if request.prompt else ""
        registry, caller = self._backend.registry, current_caller()
        prompts = []
        for status in registry.statuses(prompt, caller):
            prefix_kv_bytes = 0 if status.loaded is None else self._backend.prefix_kv_bytes(status.loaded.prefix_id)
            prompts.append(status.shown(prefix_kv_bytes))
        loaded = LoadedPrompts(tuple(prompts), shown_revision(registry.index, caller))
        return write(loaded, generation_pb2.ListLoadedPromptsResponse())

    def _message(self, part: GenerationStart | Delta | GenerationEnd) -> generation_pb2.GenerateStreamResponse:
        message = generation_pb2.GenerateStreamResponse()
        if isinstance(part, GenerationStart):
            return fill(message, start=part)
        if isinstance(part, GenerationEnd):
            return fill(message, end=part)
        return fill(message, delta=self._backend.texts.shown(part))

    def _call(self, context: Any, priority: int = 0) -> Call:
        """Metadata of a call.

        The engine's deadline is a little before the caller's, so that the end of the answer arrives in time. Raises
        InvalidInput for a priority above the tenant's maximum. Priority 0 means unset: it is lowered to that maximum.
        """
        remaining: float | None = context.time_remaining()
        if remaining is not None:
            remaining -= self.margin.seconds(remaining)
        deadline = None if remaining is None else time.monotonic() + max(0.0, remaining)
        caller = current_caller()
        tenant = caller.tenant
        self._backend.check_budget(tenant.name)
        if not priority:
            priority = min(0, tenant.max_priority)
        if priority > tenant.max_priority:
            raise InvalidInput.of("priority", f"must be at most {tenant.max_priority} for {tenant.name}, is {priority}")
        return Call(
            str(bound_fields().get("request_id", "")),
            priority=priority,
            deadline=deadline,
            tenant=tenant.name,
            weight=tenant.weight,
            caller=caller.name,
        )

    def _note_end(self, part: object, call: Call) -> None:
        if (
            isinstance(part, GenerationEnd)
            and part.finish_reason is FinishReason.DEADLINE
            and call.deadline is not None
        ):
            self.margin.ended(call.deadline)
