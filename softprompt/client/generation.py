"""Generation, scoring and the loaded versions of a replica, asynchronously; and their blocking forms."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar, Unpack

from prompttuning.v1 import generation_pb2

from shared.errors import DeadlineExceeded, InvalidInput, NotFound, Overloaded, PreconditionFailed, SoftPromptError
from shared.names import parse_version_name, version_name
from shared.values.enums import LoadedState
from shared.values.generation import (
    CandidateScore,
    Generation,
    LoadedPrompt,
    LoadedPrompts,
    ModelInfo,
    Scores,
    TokenCount,
)
from shared.values.guide import Guide
from shared.values.sampling import Sampling
from shared.values.template import Template
from shared.wire.generation import write_sampling
from shared.wire.mirror import fill
from softprompt.client.arguments import built
from softprompt.client.chat import AsyncChat
from softprompt.client.connection import Connection
from softprompt.client.convert import input_message
from softprompt.client.stream import GenerationStream
from softprompt.client.sync_methods import SyncMethods, blocking
from softprompt.data.inputs import inputs_of
from softprompt.data.problems import Unusable
from softprompt.types.generation import GenerationOutcome, Input
from softprompt.types.keywords import SamplingKeywords, sampling_with

Inputs = Iterable[Input | Mapping[str, Any]] | Any
"""Texts, conversations, mappings or examples with an input, a Series, or a DataFrame with a column of inputs."""
SERVED_POLL_SECONDS = 0.1


T = TypeVar("T")
R = TypeVar("R")
MAX_CONCURRENCY = 1024
_WINDOW = 4
"""Started calls for each one that may run: finished results wait for a slow earlier one while others go on."""
_ATTEMPTS, _LONGEST_PAUSE_SECONDS = 6, 30.0


def check_concurrency(concurrency: int) -> None:
    """Raises InvalidInput for a number of simultaneous calls outside 1 to MAX_CONCURRENCY."""
    if not 1 <= concurrency <= MAX_CONCURRENCY:
        raise InvalidInput.of("concurrency", f"must be from 1 to {MAX_CONCURRENCY}, is {concurrency}")


def _chosen(sampling: Sampling | Mapping[str, Any] | None, keywords: Mapping[str, Any]) -> Sampling | None:
    """`sampling_with`, with a Guide in place of a mapping."""
    chosen = sampling_with(sampling, keywords)
    guide: object = None if chosen is None else chosen.guide
    if chosen is None or not isinstance(guide, Mapping):
        return chosen
    return replace(chosen, guide=built(Guide, guide, "sampling.guide"))


async def in_order(inputs: Iterable[T], call: Callable[[T], Awaitable[R]], concurrency: int) -> AsyncIterator[R]:
    """The results of `call` in the order of the inputs, which are taken only as they are needed."""
    running, source = asyncio.Semaphore(concurrency), iter(inputs)
    waiting: deque[asyncio.Task[R]] = deque()

    async def one(item: T) -> R:
        async with running:
            return await call(item)

    try:
        is_over = False
        while True:
            while not is_over and len(waiting) < _WINDOW * concurrency:
                try:
                    waiting.append(asyncio.create_task(one(next(source))))
                except StopIteration:
                    is_over = True
            if not waiting:
                return
            yield await waiting.popleft()
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


async def patient(call: Callable[[], Awaitable[R]]) -> R:
    """The result of a call that is repeated while the service is overloaded, each time after the pause that it asks
    for. Raises Overloaded after several attempts, or at once if the pause is long or a budget is used up.
    """
    for _ in range(_ATTEMPTS - 1):
        try:
            return await call()
        except Overloaded as error:
            if error.is_of_budget or error.retry_after_seconds > _LONGEST_PAUSE_SECONDS:
                raise
            await asyncio.sleep(error.retry_after_seconds)
    return await call()


class GenerationMethods:
    """The part of AsyncClient for the inference service. `prompt` is "name", "name@alias" or "name@7"; empty: the bare
    model. `base_model` names the one that must answer, by id or fingerprint; empty: any.
    """

    _connection: Connection
    _generation_timeout_seconds: float

    async def generate(
        self,
        input: Input,
        *,
        prompt: str = "",
        sampling: Sampling | Mapping[str, Any] | None = None,
        template: Template | None = None,
        routing_key: str = "",
        truncate: bool = False,
        priority: int = 0,
        base_model: str = "",
        timeout_seconds: float | None = None,
        **parameters: Unpack[SamplingKeywords],
    ) -> Generation:
        """The whole answer at once. `template` is only for the bare model. `parameters` are the fields of `Sampling`,
        as in `temperature=0.2`, and precede `sampling`. Raises the errors of the service.
        """
        request = generation_pb2.GenerateRequest(
            input=input_message(input, prompt, template, routing_key, truncate, base_model),
            sampling=write_sampling(_chosen(sampling, parameters)),
        )
        fill(request, priority=priority)
        timeout = self._generation_timeout_seconds if timeout_seconds is None else timeout_seconds
        return await self._connection.ask(Generation, request, timeout_seconds=timeout)

    def stream(
        self,
        input: Input,
        *,
        prompt: str = "",
        sampling: Sampling | Mapping[str, Any] | None = None,
        template: Template | None = None,
        routing_key: str = "",
        truncate: bool = False,
        priority: int = 0,
        base_model: str = "",
        timeout_seconds: float | None = None,
        **parameters: Unpack[SamplingKeywords],
    ) -> GenerationStream:
        """The answer while it is generated: iterate over the result. Leaving the loop cancels the generation.
        `parameters` are the fields of `Sampling`, as in `temperature=0.2`.
        """
        request = generation_pb2.GenerateStreamRequest(
            input=input_message(input, prompt, template, routing_key, truncate, base_model),
            sampling=write_sampling(_chosen(sampling, parameters)),
        )
        fill(request, priority=priority)
        timeout = self._generation_timeout_seconds if timeout_seconds is None else timeout_seconds
        connection, num_completions = self._connection, request.sampling.n or 1
        return GenerationStream(
            connection.inference,
            lambda: connection.generation.GenerateStream(request, timeout=timeout),
            num_completions,
        )

    def generate_many(
        self,
        inputs: Inputs,
        *,
        prompt: str = "",
        sampling: Sampling | Mapping[str, Any] | None = None,
        template: Template | None = None,
        routing_key: str = "",
        truncate: bool = False,
        priority: int = 0,
        base_model: str = "",
        timeout_seconds: float | None = None,
        concurrency: int = 8,
        **parameters: Unpack[SamplingKeywords],
    ) -> AsyncIterator[GenerationOutcome]:
        """One outcome for each input, in their order: the answer, or why there is none. At most `concurrency` answers
        are generated at once; inputs may come from a generator. The other arguments are those of `generate`, with
        `timeout_seconds` for each answer. Waits as an overloaded service asks. Raises InvalidInput for arguments that
        are wrong for all inputs.
        """
        check_concurrency(concurrency)
        chosen = _chosen(sampling, parameters)

        async def one(item: tuple[int, Input | Unusable]) -> GenerationOutcome:
            index, content = item
            if isinstance(content, Unusable):
                place = f"inputs[{index}]" + (f".{content.part}" if content.part else "")
                return GenerationOutcome(index, "", error=InvalidInput.of(place, content.reason))
            try:
                answer = await patient(
                    lambda: self.generate(
                        content,
                        prompt=prompt,
                        sampling=chosen,
                        template=template,
                        routing_key=routing_key,
                        truncate=truncate,
                        priority=priority,
                        base_model=base_model,
                        timeout_seconds=timeout_seconds,
                    )
                )
            except SoftPromptError as error:
                return GenerationOutcome(index, content, error=error)
            return GenerationOutcome(index, content, answer)

        return in_order(enumerate(inputs_of(inputs)), one, concurrency)

    def chat(
        self,
        prompt: str = "",
        *,
        system: str = "",
        sampling: Sampling | Mapping[str, Any] | None = None,
        routing_key: str = "",
        truncate: bool = True,
        base_model: str = "",
        timeout_seconds: float | None = None,
        **parameters: Unpack[SamplingKeywords],
    ) -> AsyncChat:
        """A conversation that keeps its turns. With `truncate`, the oldest turns are left out once they don't fit."""
        chosen = _chosen(sampling, parameters)
        return AsyncChat(
            lambda messages: self.stream(
                messages,
                prompt=prompt,
                sampling=chosen,
                routing_key=routing_key,
                truncate=truncate,
                base_model=base_model,
                timeout_seconds=timeout_seconds,
            ),
            system,
        )

    async def score(
        self,
        input: Input,
        *,
        prompt: str = "",
        candidates: Sequence[str] = (),
        template: Template | None = None,
        routing_key: str = "",
        base_model: str = "",
    ) -> Scores:
        """Log-probability of each candidate as the continuation of the input. Default: the labels of the version."""
        request = generation_pb2.ScoreRequest(
            input=input_message(input, prompt, template, routing_key, False, base_model)
        )
        fill(request, candidates=candidates)
        return await self._connection.ask(Scores, request)

    async def classify(
        self, input: Input, *, prompt: str, labels: Sequence[str] = (), routing_key: str = ""
    ) -> CandidateScore:
        """The most probable label (`.candidate`) of `labels`, with its probability. Default: those of the version."""
        scores = await self.score(input, prompt=prompt, candidates=labels, routing_key=routing_key)
        return scores.scores[scores.best]

    async def count_tokens(
        self, input: Input, *, prompt: str = "", template: Template | None = None, base_model: str = ""
    ) -> TokenCount:
        """The tokens that the input takes with the template of the prompt."""
        request = generation_pb2.CountTokensRequest(input=input_message(input, prompt, template, "", False, base_model))
        return await self._connection.ask(TokenCount, request)

    async def model_info(self, base_model: str = "") -> ModelInfo:
        """Base model, limits and default sampling of the answering replica. `base_model`: which one of several."""
        return await self._connection.ask(ModelInfo, generation_pb2.GetModelInfoRequest(base_model=base_model))

    async def loaded_prompts(self, prompt: str = "") -> LoadedPrompts:
        """Versions that the answering replica knows, and the state of each. `prompt` empty: of all prompts."""
        return await self._connection.ask(LoadedPrompts, generation_pb2.ListLoadedPromptsRequest(prompt=prompt))

    async def wait_until_served(self, version: str, *, timeout_seconds: float = 60.0) -> LoadedPrompt:
        """Wait until the answering replica serves a version ("prompts/{prompt}/versions/{n}" or "name@7").

        Raises PreconditionFailed with the reason if the replica refused it, DeadlineExceeded after `timeout_seconds`.
        """
        prompt, number = parse_version_name(version, "version")
        wanted, deadline = version_name(prompt, number), time.monotonic() + timeout_seconds
        while True:
            found = await self._loaded_version(prompt, wanted)
            if found is not None and found.state is LoadedState.QUARANTINED:
                reason = f"{wanted} was refused by the inference service: {found.reason}"
                raise PreconditionFailed(reason, version=wanted)
            if found is not None:
                return found
            if time.monotonic() > deadline:
                raise DeadlineExceeded(f"{wanted} is not served after {timeout_seconds:g} s")
            await asyncio.sleep(SERVED_POLL_SECONDS)

    async def _loaded_version(self, prompt: str, wanted: str) -> LoadedPrompt | None:
        try:
            loaded = await self.loaded_prompts(prompt)
        except NotFound:  # the replica has not seen a new prompt's first version yet
            return None
        return next((item for item in loaded.prompts if item.version == wanted), None)


class SyncGenerationMethods(SyncMethods):
    """The blocking forms of GenerationMethods."""

    generate = blocking(GenerationMethods.generate)
    stream = blocking(GenerationMethods.stream)
    generate_many = blocking(GenerationMethods.generate_many)
    chat = blocking(GenerationMethods.chat)
    score = blocking(GenerationMethods.score)
    classify = blocking(GenerationMethods.classify)
    count_tokens = blocking(GenerationMethods.count_tokens)
    model_info = blocking(GenerationMethods.model_info)
    loaded_prompts = blocking(GenerationMethods.loaded_prompts)
    wait_until_served = blocking(GenerationMethods.wait_until_served)
