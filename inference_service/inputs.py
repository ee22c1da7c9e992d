"""What a caller wants the model to start from, and how it becomes token ids within the model's bounds.

Rendering and tokenizing themselves are `shared.text.template`'s; this module adds the bounds, truncation, and keeps
large inputs off the event loop. Knows nothing of gRPC.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

from inference_service.limits import MAX_SHOWN_VIOLATIONS
from shared.errors import FieldViolation, InvalidInput
from shared.names import PromptReference
from shared.process.call_pool import CallPool
from shared.text.template import INPUT_FIELD, InputEncoder, Message, Template
from shared.text.truncation import fit_messages, fit_text

Encoded = TypeVar("Encoded")
_MAX_WAIT_SECONDS = 600.0
_INLINE_BYTES = 16_384  # about 7 ms of tokenizing; more would hold up every stream of the process


@dataclass(frozen=True)
class TextInput:
    """Text, rendered by the template."""

    text: str


@dataclass(frozen=True)
class ChatInput:
    """A conversation, for templates with the CHAT format."""

    messages: tuple[Message, ...]


@dataclass(frozen=True)
class TokenInput:
    """Token ids, taken as they are."""

    ids: tuple[int, ...]


Content = TextInput | ChatInput | TokenInput


@dataclass(frozen=True)
class InputRequest:
    """`reference` None is the bare model; only then may `template` be set."""

    content: Content
    reference: PromptReference | None = None
    template: Template | None = None
    routing_key: str = ""
    truncate: bool = False


@dataclass(frozen=True)
class PreparedInput:
    """`ids` stand behind the virtual tokens. An answer that begins with `answer_prefix` is shown without it."""

    ids: tuple[int, ...]
    answer_prefix: str


class InputPreparer:
    """Bounds: ids below `vocab_size`; virtual tokens, input and at least one generated token within `max_length`
    positions.
    """

    def __init__(self, vocab_size: int, max_length: int, length_limit: str = "this service") -> None:
        """`length_limit`: what sets `max_length`, for errors."""
        self._vocab_size, self._max_length, self._length_limit = vocab_size, max_length, length_limit
        # One thread: a burst of huge inputs takes one core, and the loop and the engine keep the others. Tenants take
        # turns at it.
        self._pool = CallPool("tokenizer", max_threads=1, timeout_seconds=_MAX_WAIT_SECONDS)

    async def prepare(
        self, request: InputRequest, encoder: InputEncoder, num_virtual_tokens: int, reserve: int = 1
    ) -> PreparedInput:
        """Token ids that leave `reserve` positions free. Raises InvalidInput naming the field, with the counts if it is
        too long.
        """
        content, room = request.content, self._max_length - num_virtual_tokens - reserve
        prepared = await self.encode(request, encoder, room if request.truncate and room > 0 else None)
        if len(prepared.ids) > room:
            raise InvalidInput.of(field_of(content), self._too_long(len(prepared.ids), num_virtual_tokens, reserve))
        return prepared

    async def encode(self, request: InputRequest, encoder: InputEncoder, room: int | None = None) -> PreparedInput:
        """Token ids, cut from the left to `room` of them (`fit_text`, `fit_messages`); None: all. Raises InvalidInput
        naming the field.
        """
        content = request.content
        if isinstance(content, TokenInput):
            self._check_ids(content.ids)
            ids, prefix = content.ids if room is None else content.ids[-room:], ""
        else:
            encoded = await self.run(_size_bytes(content), lambda: _encode(encoder, content, room))
            ids, prefix = tuple(encoded), encoder.template.target_prefix
        if not ids or _is_empty(content, encoder.template):
            raise InvalidInput.of(field_of(content), "has no tokens to start from")
        return PreparedInput(ids, prefix)

    async def run(self, size_bytes: int, encode: Callable[[], Encoded]) -> Encoded:
        """Small things at once, large ones on the thread."""
        if size_bytes <= _INLINE_BYTES:
            return encode()
        return await self._pool.call(encode)

    def close(self) -> None:
        self._pool.close()

    def _too_long(self, num_input: int, num_virtual: int, reserve: int) -> str:
        room = max(0, self._max_length - num_virtual - reserve)
        return (
            f"has {num_input} tokens; with {num_virtual} virtual tokens and at least {reserve} more for what follows, there are "
            f"{self._max_length} in all, set by {self._length_limit}: so at most {room} here; shorten it or set truncate"
        )

    def _check_ids(self, ids: tuple[int, ...]) -> None:
        wrong = [
            FieldViolation(
                f"input.token_ids.ids[{index}]", f"must be a token id from 0 to {self._vocab_size - 1}, is {token}"
            )
            for index, token in enumerate(ids)
            if not 0 <= token < self._vocab_size
        ]
        if wrong:
            raise InvalidInput(wrong[:MAX_SHOWN_VIOLATIONS])


def field_of(content: Content) -> str:
    return {TextInput: "input.text", ChatInput: "input.chat", TokenInput: "input.token_ids"}[type(content)]


def _size_bytes(content: TextInput | ChatInput) -> int:
    """At most four bytes a character; near enough to choose where to tokenize."""
    if isinstance(content, TextInput):
        return len(content.text)
    return sum(len(message.content) + 16 for message in content.messages)


def _is_empty(content: Content, template: Template) -> bool:
    """No text at all, where the template has none either: what a chat template writes around it is nothing to answer."""
    return isinstance(content, TextInput) and not content.text and template.text == INPUT_FIELD


def _encode(encoder: InputEncoder, content: TextInput | ChatInput, room: int | None) -> list[int]:
    try:
        if isinstance(content, TextInput):
            return encoder.encode_input(content.text) if room is None else fit_text(encoder, content.text, room)
        return (
            encoder.encode_messages(content.messages) if room is None else fit_messages(encoder, content.messages, room)
        )
    except InvalidInput as error:
        raise InvalidInput(
            [replace(found, field=_field_in(content, found.field)) for found in error.violations]
        ) from error


def _field_in(content: TextInput | ChatInput, field: str) -> str:
    """The request's name for what the encoder calls `messages[1]` or `template.system`."""
    if field.startswith("messages"):
        return "input.text" if isinstance(content, TextInput) else f"input.chat.{field}"
    return f"input.{field}"
