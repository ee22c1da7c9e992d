"""The input of a request, and its conversion to token ids within the model's limits.

`shared.text.template` renders and tokenizes. This module checks limits, truncates, and keeps large inputs off the event
loop. Knows nothing of gRPC.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from inference_service.limits import MAX_SHOWN_VIOLATIONS
from shared.errors import FieldViolation, InvalidInput
from shared.location import Location
from shared.names import PromptReference
from shared.process.call_pool import CallPool
from shared.text.template import INPUT_FIELD, InputEncoder, Message, Template
from shared.text.truncation import fit_messages, fit_text
from shared.values.generation import TokenIds

Encoded = TypeVar("Encoded")
_MAX_WAIT_SECONDS = 600.0
_INLINE_BYTES = 16_384  # about 7 ms of tokenizing; more would hold up every stream of the process


Content = str | tuple[Message, ...] | TokenIds
"""A text or a conversation, rendered by the template, or token ids, used unchanged."""


@dataclass(frozen=True)
class InputRequest:
    """An input and its prompt. `reference` None is the bare model; only then may `template` be set.

    `base_model`: id or fingerprint of the base model that must answer; empty: any.
    """

    content: Content
    reference: PromptReference | None = None
    template: Template | None = None
    routing_key: str = ""
    truncate: bool = False
    base_model: str = ""


@dataclass(frozen=True)
class PreparedInput:
    """Token ids that follow the virtual tokens. `answer_prefix` is removed from the start of an answer."""

    ids: tuple[int, ...]
    answer_prefix: str


class InputPreparer:
    """Converts inputs to token ids and checks their limits.

    Ids must be below `vocab_size`; virtual tokens, input and at least one generated token must fit into `max_length`
    positions.
    """

    def __init__(self, vocab_size: int, max_length: int, length_limit: str = "this service") -> None:
        """`length_limit` is the origin of `max_length` for error texts."""
        self._vocab_size, self._max_length, self._length_limit = vocab_size, max_length, length_limit
        # One thread: a burst of huge inputs occupies one core and leaves the others to the loop and the engine. Tenants
        # take turns.
        self._pool = CallPool("tokenizer", max_threads=1, timeout_seconds=_MAX_WAIT_SECONDS)

    async def prepare(
        self, request: InputRequest, encoder: InputEncoder, num_virtual_tokens: int, reserve: int = 1
    ) -> PreparedInput:
        """Token ids of an input that leave `reserve` positions free.

        Raises InvalidInput naming the field, with the counts if the input is too long.
        """
        content, room = request.content, self._max_length - num_virtual_tokens - reserve
        prepared = await self.encode(request, encoder, room if request.truncate and room > 0 else None)
        if len(prepared.ids) > room:
            raise InvalidInput.of(field_of(content), self._too_long(len(prepared.ids), num_virtual_tokens, reserve))
        return prepared

    async def encode(self, request: InputRequest, encoder: InputEncoder, room: int | None = None) -> PreparedInput:
        """Token ids of an input, truncated from the left to `room` ids unless it is None (`fit_text`, `fit_messages`).

        Raises InvalidInput naming the field.
        """
        content = request.content
        if isinstance(content, TokenIds):
            self._check_ids(content.ids)
            ids, prefix = content.ids if room is None else content.ids[-room:], ""
        else:
            size_bytes = _size_bytes(content) + len(encoder.template.text) + len(encoder.template.system)
            encoded = await self.run(size_bytes, lambda: _encode(encoder, content, room))
            ids, prefix = tuple(encoded), encoder.template.target_prefix
        if not ids or _is_empty(content, encoder.template):
            raise InvalidInput.of(field_of(content), "must not be empty")
        self.check_vocabulary(ids, field_of(content))
        return PreparedInput(ids, prefix)

    def check_vocabulary(self, ids: Sequence[int], field: str) -> None:
        """Raises InvalidInput for a token that was added to the tokenizer after the model was trained."""
        if (last := max(ids)) >= self._vocab_size:
            text = (
                f"has the token id {last}, but the base model has {self._vocab_size} tokens: leave that token out, or "
                "choose a template without it"
            )
            raise InvalidInput.of(field, text)

    async def run(self, size_bytes: int, encode: Callable[[], Encoded]) -> Encoded:
        """Run `encode` directly for small inputs, on the thread for large ones."""
        if size_bytes <= _INLINE_BYTES:
            return encode()
        return await self._pool.call(encode)

    def close(self) -> None:
        """Stop the thread."""
        self._pool.close()

    def _too_long(self, num_input: int, num_virtual: int, reserve: int) -> str:
        room = max(0, self._max_length - num_virtual - reserve)
        return (
            f"has {num_input} tokens; at most {room} fit with {num_virtual} virtual tokens and at least {reserve} to "
            f"follow into {self._max_length} positions, set by {self._length_limit}; shorten it or set truncate"
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
    """The request's field for this kind of content."""
    return {str: "input.text", tuple: "input.chat", TokenIds: "input.token_ids"}[type(content)]


def _size_bytes(content: str | tuple[Message, ...]) -> int:
    """Approximate size, in characters; precise enough to choose where to tokenize."""
    if isinstance(content, str):
        return len(content)
    return sum(len(message.content) + 16 for message in content)


def _is_empty(content: Content, template: Template) -> bool:
    """Whether neither the input nor the template has any text."""
    return isinstance(content, str) and not content and template.text == INPUT_FIELD


def _encode(encoder: InputEncoder, content: str | tuple[Message, ...], room: int | None) -> list[int]:
    try:
        if isinstance(content, str):
            return encoder.encode_input(content) if room is None else fit_text(encoder, content, room)
        return encoder.encode_messages(content) if room is None else fit_messages(encoder, content, room)
    except InvalidInput as error:
        raise error.moved(lambda place: _in_request(content, place)) from error


def _in_request(content: str | tuple[Message, ...], place: Location) -> Location:
    """The request's field for the encoder's, such as `messages[1]` or `template.system`."""
    if place.path[:1] != ("messages",):
        return place.below(Location(("input",)))
    return Location(("input", "text")) if isinstance(content, str) else place.below(Location(("input", "chat")))
