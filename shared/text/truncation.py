"""Truncates long inputs from the left. The template's own text stays: BOS, the system message, headers of turns.

In a conversation, the oldest turns are removed first; the rest still begins with a user's turn. Only then is the
beginning of a text cut.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import replace

from shared.text.template import InputEncoder, Message, TemplateFormat, conversation_text

_CHARS_PER_TOKEN = 8
"""A high first guess of how much of a long text can fit."""


def fit_text(encoder: InputEncoder, text: str, room: int) -> list[int]:
    """Ids of the text, or of its longest ending that takes at most `room` tokens.

    The result is longer than `room` only if the template with the last character is. Raises InvalidInput like the
    encoder.
    """
    return _fit(encoder.encode_input, text, room)


def fit_messages(encoder: InputEncoder, messages: Sequence[Message], room: int) -> list[int]:
    """Ids of the conversation without the oldest turns that don't fit. If one turn doesn't fit, its longest ending.

    Raises InvalidInput like the encoder.
    """
    ids = encoder.encode_messages(messages)
    if len(ids) <= room:
        return ids
    if encoder.template.format is not TemplateFormat.CHAT:
        return _fit(encoder.encode_input, conversation_text(messages), room)
    turns = [index for index, message in enumerate(messages) if message.role != "system"]
    starts = [index for index in turns if messages[index].role == "user"] or turns[-1:]
    if not starts:
        return ids

    def kept_from(start: int) -> list[Message]:
        return [message for index, message in enumerate(messages) if index >= start or message.role == "system"]

    first = bisect_left(starts, True, key=lambda start: len(encoder.encode_messages(kept_from(start))) <= room)
    kept = kept_from(start := starts[min(first, len(starts) - 1)])
    ids = encoder.encode_messages(kept)
    if len(ids) <= room:
        return ids
    cut = kept.index(messages[start])

    def encode_beginning_with(content: str) -> list[int]:
        return encoder.encode_messages([*kept[:cut], replace(kept[cut], content=content), *kept[cut + 1 :]])

    return _fit(encode_beginning_with, kept[cut].content, room)


def _fit(encode: Callable[[str], list[int]], text: str, room: int) -> list[int]:
    ids = encode(text)
    if len(ids) <= room:
        return ids
    # Endings of growing length until one is too long, so that a huge text is not tokenized over and over.
    length = max(1, room * _CHARS_PER_TOKEN)
    while length < len(text) and len(encode(text[-length:])) <= room:
        length *= 2
    text = text[-length:]
    cut = bisect_left(range(len(text)), True, key=lambda begin: len(encode(text[begin:])) <= room)
    return encode(text[min(cut, len(text) - 1) :])
