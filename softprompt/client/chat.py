"""A conversation with a prompt or the bare model, which keeps the turns of both sides."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from shared.values.generation import GenerationDelta
from shared.values.message import Message
from softprompt.client.loop_thread import LoopThread

if TYPE_CHECKING:
    from softprompt.client.stream import GenerationStream


class AsyncChat:
    """`async for delta in chat.stream("Hello")`, or `await chat.send("Hello")`. Get one from `AsyncClient.chat`."""

    def __init__(self, open_stream: Callable[[Sequence[Message]], GenerationStream], system: str) -> None:
        self._open_stream = open_stream
        self._first = (Message("system", system),) if system else ()
        self.messages: list[Message] = list(self._first)
        """The turns so far."""

    def reset(self) -> None:
        """Forget all turns except the system message."""
        self.messages = list(self._first)

    def _asked(self, text: str) -> list[Message]:
        return [*self.messages, Message("user", text)]

    def _keep(self, text: str, answer: str) -> None:
        """An answer that broke off stays as it is. A question without any answer is forgotten."""
        if answer:
            self.messages = [*self._asked(text), Message("assistant", answer)]

    async def stream(self, text: str) -> AsyncIterator[GenerationDelta]:
        """The answer to `text` while it is generated. Leaving the loop cancels it; what came until then is kept."""
        pieces: list[str] = []
        try:
            async with self._open_stream(self._asked(text)) as answer:
                async for delta in answer:
                    if delta.index == 0:
                        pieces.append(delta.text)
                    yield delta
        finally:
            self._keep(text, "".join(pieces))

    async def send(self, text: str) -> str:
        """The whole answer to `text`."""
        return "".join([delta.text async for delta in self.stream(text)])


class Chat:
    """`for delta in chat.stream("Hello")`, or `chat.send("Hello")`. Get one from `Client.chat`."""

    def __init__(self, chat: AsyncChat, loop: LoopThread) -> None:
        self._chat, self._loop = chat, loop

    @property
    def messages(self) -> list[Message]:
        """The turns so far."""
        return self._chat.messages

    @messages.setter
    def messages(self, messages: list[Message]) -> None:
        self._chat.messages = messages

    def reset(self) -> None:
        """Forget all turns except the system message."""
        self._chat.reset()

    def stream(self, text: str) -> Iterator[GenerationDelta]:
        """The answer to `text` while it is generated. Leaving the loop, or Ctrl-C, cancels it and keeps what came."""
        return self._loop.iterate(self._chat.stream(text))

    def send(self, text: str) -> str:
        """The whole answer to `text`."""
        return "".join(delta.text for delta in self.stream(text))
