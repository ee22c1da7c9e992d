"""Generations for one request: one call for each input, all at once, whole or merged into one stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from shared.errors import Cancelled, Unimplemented
from shared.values.generation import (
    FinishReason,
    Generation,
    GenerationDelta,
    GenerationEnd,
    GenerationStart,
)
from shared.values.message import Message
from shared.values.sampling import Sampling
from shared.values.template import Template
from softprompt.client.async_client import AsyncClient
from softprompt.client.stream import GenerationStream
from softprompt.gateway.backend import Reference
from softprompt.types.generation import Input

T = TypeVar("T")
IDLE_SECONDS = 15.0
"""Longest silence of a stream. Proxies close connections that are silent for longer, most of them after a minute."""


def conversation(messages: list[Message], model: Reference) -> Input:
    """A conversation as the services take it. To a prompt, one user message is its template's input, as in training."""
    is_input = model.prompt and len(messages) == 1 and messages[0].role == "user" and messages[0].content
    return messages[0].content if is_input else messages


@dataclass(frozen=True)
class Ask:
    """One generation."""

    input: Input
    model: Reference
    sampling: Sampling
    template: Template | None = None
    routing_key: str = ""
    truncate: bool = False

    @property
    def num_completions(self) -> int:
        """Answers to this input."""
        return self.sampling.n or 1

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of the client's `generate` and `stream`."""
        return {
            **{field.name: getattr(self, field.name) for field in fields(self) if field.name != "model"},
            **self.model._asdict(),
        }


async def all_answers(client: AsyncClient, asks: Sequence[Ask]) -> list[Generation]:
    """Whole answers of each input, in order. The first error cancels the others."""

    async def one(ask: Ask) -> Generation:
        found = await client.generate(**ask.arguments)
        if len(found.completions) != ask.num_completions:
            raise Unimplemented("this inference service does not offer several answers to one input")
        for completion in found.completions:
            check_end(completion.end)
        return found

    return await together([one(ask) for ask in asks])


def check_end(end: GenerationEnd) -> None:
    """Raises Cancelled if the service ended the answer early because it stops."""
    if end.finish_reason in (FinishReason.CANCELLED, None):
        raise Cancelled("the service stopped before the answer was complete; try again")


class AnswerStreams:
    """Several streams as one: `started`, then `parts`, and always `cancel`."""

    def __init__(self, client: AsyncClient, asks: Sequence[Ask]) -> None:
        self._streams = [client.stream(**ask.arguments) for ask in asks]
        counts = [ask.num_completions for ask in asks]
        self._num_answers = sum(counts)
        self._first = [sum(counts[:index]) for index in range(len(counts))]
        """Index of each input's first answer, among all answers."""

    async def started(self) -> list[GenerationStart]:
        """The start of each input's answers. Raises the first error, while it can still become a status."""
        try:
            return await together([stream.started() for stream in self._streams])
        except BaseException:
            self.cancel()
            raise

    def cancel(self) -> None:
        """Cancel what still runs, so that the service frees its rows."""
        for stream in self._streams:
            stream.cancel()

    async def parts(self) -> Parts:
        """(index of the answer, its next delta or its end) as they come; None after a silence of IDLE_SECONDS."""
        queue: asyncio.Queue[tuple[int, GenerationDelta | GenerationEnd | Exception]] = asyncio.Queue(maxsize=4)

        async def forward(first: int, stream: GenerationStream) -> None:
            try:
                async with aclosing(aiter(stream)) as deltas:  # type: ignore[type-var]
                    async for delta in deltas:
                        await queue.put((first + delta.index, delta))
                for end in stream.ends.values():
                    check_end(end)
                    await queue.put((first + end.index, end))
            except Exception as error:
                await queue.put((first, error))

        tasks = [
            asyncio.create_task(forward(first, stream))
            for first, stream in zip(self._first, self._streams, strict=True)
        ]
        num_open = self._num_answers
        try:
            while num_open:
                try:
                    async with asyncio.timeout(IDLE_SECONDS):
                        index, part = await queue.get()
                except TimeoutError:
                    yield None
                    continue
                if isinstance(part, Exception):
                    raise part
                num_open -= isinstance(part, GenerationEnd)
                yield index, part
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


Parts = AsyncIterator[tuple[int, GenerationDelta | GenerationEnd] | None]


async def together(work: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Results of coroutines that run at the same time. The first error cancels the others and is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one) for one in work]
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None
    return [task.result() for task in tasks]
