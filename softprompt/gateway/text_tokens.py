"""Which tokens an answer's text is made of, and where each of them begins in it."""

from __future__ import annotations

import codecs
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

from shared.values.generation import (
    Completion,
    FinishReason,
    GenerationDelta,
    GenerationEnd,
    InputToken,
    TokenLogprob,
)
from softprompt.gateway.answers import Parts

_REPLACEMENT = "\ufffd"
Token = InputToken | TokenLogprob


@dataclass(frozen=True)
class TextPart:
    """A part of an answer's text, the tokens that it completes, and the number of characters before each of them."""

    text: str
    logprobs: tuple[Token, ...] = ()
    offsets: tuple[int, ...] = ()


class TextTokens:
    """The tokens of one answer's text: without the end token and a stop sequence, as OpenAI has them.

    A token may be a part of a character. A control token has no character in the text.
    """

    def __init__(self, echo: Sequence[InputToken] = ()) -> None:
        """`echo`: the input's tokens, if the text begins with the input."""
        self._held: list[Token] = list(echo)
        self._places: list[int] = []
        """Offsets of the first tokens of `_held`, which are parts of an unfinished character."""
        self._num_echoed = len(echo)
        self._decoder = _new_decoder()
        self._rest, self._offset, self._num_read = "", 0, 0
        """The text of which no token was known, the number of characters before the next token, and how many of them
        are in that text.
        """

    def add(self, delta: GenerationDelta) -> TextPart:
        """The text with the next tokens that are in the text by now. The others are held."""
        self._held += delta.logprobs
        self._rest += delta.text
        while len(self._places) < len(self._held) and self._place(self._held[len(self._places)]):
            pass
        self._rest, self._num_read = self._rest[self._num_read :], 0
        is_unfinished = bool(self._decoder.getstate()[0])
        return TextPart(delta.text, *self._taken(self._num_begun() if is_unfinished else len(self._places)))

    def rest(self, end: GenerationEnd) -> TextPart:
        """The held tokens that belong to the text after all."""
        count = len(self._held)
        if end.finish_reason is FinishReason.STOP_SEQUENCE:  # a token that begins before it belongs to the text
            count = min(count, len(self._places) + 1 if self._rest else self._num_begun())
        elif end.finish_reason is FinishReason.EOS:
            count = max(0, count - 1)
        self._places += [self._offset] * (count - len(self._places))
        return TextPart("", *self._taken(count))

    def _num_begun(self) -> int:
        """The number of tokens of which the text has a character."""
        return sum(place < self._offset for place in self._places)

    def _taken(self, count: int) -> tuple[tuple[Token, ...], tuple[int, ...]]:
        tokens, places = tuple(self._held[:count]), tuple(self._places[:count])
        self._held, self._places = self._held[len(tokens) :], self._places[len(places) :]
        self._num_echoed -= len(tokens)
        return tokens, places

    def _place(self, token: Token) -> bool:
        """Find the place of the next token. False if the text may lack it so far."""
        state = self._decoder.getstate()
        text = self._decoder.decode(token.utf8, final=len(self._places) + 1 == self._num_echoed)
        if not text:
            self._places.append(self._offset)
            return True
        spaces = len(text) - len(text.lstrip(" ")) if self._offset == 0 else 0  # the text may lack its first ones
        forms = [text[begin:] for begin in range(spaces + 1)]
        ahead = self._rest[self._num_read : self._num_read + len(text) + 1]
        found = next((form for form in forms if ahead and ahead.startswith(form)), None)
        if found is None:
            self._decoder.setstate(state)
            if any(form.startswith(ahead) for form in forms):
                return False
            self._places.append(self._offset)  # a control token
            return True
        begins_later = bool(state[0]) and text == _REPLACEMENT + _new_decoder().decode(token.utf8)
        self._places.append(self._offset + begins_later)
        self._offset, self._num_read = self._offset + len(found), self._num_read + len(found)
        return True


def _new_decoder() -> codecs.IncrementalDecoder:
    """As the service decodes answers."""
    return codecs.getincrementaldecoder("utf-8")(errors="replace")


def text_tokens(completion: Completion, echo: Sequence[InputToken] = ()) -> TextPart:
    """`TextTokens` of a whole answer."""
    found = TextTokens(echo)
    first, last = found.add(completion.output), found.rest(completion.end)
    return TextPart(first.text, first.logprobs + last.logprobs, first.offsets + last.offsets)


async def only_text_tokens(
    parts: Parts, echo_of: Callable[[int], Sequence[InputToken]] = lambda _: ()
) -> AsyncIterator[tuple[int, TextPart | GenerationEnd] | None]:
    """`AnswerStreams.parts` with `TextTokens` only. `echo_of`: `echo` by the answer's index."""
    answers = dict[int, TextTokens]()
    async for found in parts:
        if found is None:
            yield None
            continue
        index, part = found
        if index not in answers:
            answers[index] = TextTokens(echo_of(index))
        piece = answers[index].rest(part) if isinstance(part, GenerationEnd) else answers[index].add(part)
        if piece.text or piece.logprobs:
            yield index, piece
        if isinstance(part, GenerationEnd):
            yield index, part
