"""The blocking forms of the methods about answers. Their docstrings are those of GenerationMethods."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, Unpack

from softprompt.client.chat import Chat
from softprompt.client.generation import GenerationMethods, Inputs
from softprompt.client.loop_thread import LoopThread
from softprompt.client.stream import GenerationStream
from softprompt.client.sync_methods import SyncMethods, documented_by
from softprompt.types.common import Sampling, Template
from softprompt.types.generation import (
    CandidateScore,
    Generation,
    GenerationDelta,
    GenerationEnd,
    GenerationOutcome,
    GenerationStart,
    Input,
    LoadedPrompt,
    LoadedPrompts,
    ModelInfo,
    Scores,
    TokenCount,
)
from softprompt.types.keywords import SamplingKeywords, sampling_with


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


@documented_by(GenerationMethods)
class SyncGenerationMethods(SyncMethods):
    """See GenerationMethods."""

    def generate(
        self,
        input: Input,
        *,
        prompt: str = "",
        sampling: Sampling | Mapping[str, Any] | None = None,
        template: Template | None = None,
        routing_key: str = "",
        truncate: bool = False,
        priority: int = 0,
        timeout_seconds: float | None = None,
        **parameters: Unpack[SamplingKeywords],
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
                **parameters,
            )
        )

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
        timeout_seconds: float | None = None,
        **parameters: Unpack[SamplingKeywords],
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
            **parameters,
        )
        return SyncGenerationStream(stream, self._loop)

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
        timeout_seconds: float | None = None,
        concurrency: int = 8,
        **parameters: Unpack[SamplingKeywords],
    ) -> Iterator[GenerationOutcome]:
        outcomes = self._client.generate_many(
            inputs,
            prompt=prompt,
            sampling=sampling,
            template=template,
            routing_key=routing_key,
            truncate=truncate,
            priority=priority,
            timeout_seconds=timeout_seconds,
            concurrency=concurrency,
            **parameters,
        )
        return self._loop.iterate(outcomes)

    def chat(
        self,
        prompt: str = "",
        *,
        system: str = "",
        sampling: Sampling | Mapping[str, Any] | None = None,
        routing_key: str = "",
        truncate: bool = True,
        timeout_seconds: float | None = None,
        **parameters: Unpack[SamplingKeywords],
    ) -> Chat:
        chosen = sampling_with(sampling, parameters)
        return Chat(
            lambda messages: self.stream(
                messages,
                prompt=prompt,
                sampling=chosen,
                routing_key=routing_key,
                truncate=truncate,
                timeout_seconds=timeout_seconds,
            ),
            system,
        )

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
