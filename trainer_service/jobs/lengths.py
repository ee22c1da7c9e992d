"""Which examples might not fit into the model's context: found by counting characters, so that only those need be tokenized.

A token stands for at least one byte of the text, and a tokenizer's normalization makes at most a few dozen bytes of one character (NFKC
turns U+FDFA into 18 letters, 33 bytes). So a short example of a large dataset is known to fit at no cost. Exact where it matters: an
example that could be too long is tokenized.
"""

from __future__ import annotations

from collections.abc import Iterable

from shared.template import InputEncoder
from trainer_service.training.spec import Example

_MAX_TOKENS_PER_CHARACTER = 36
_MARGIN_TOKENS = 8
"""The space before a target, the end of sequence, a mark that a tokenizer puts before a text."""


def possibly_too_long(examples: Iterable[Example], encoder: InputEncoder, room: int) -> list[Example]:
    """Those that can't be known to fit into `room` tokens without being tokenized. Conversations are always among them."""
    left = room - len(encoder.encode_input("")) - _MARGIN_TOKENS
    return [example for example in examples if example.messages or _most_tokens(example) > left]


def _most_tokens(example: Example) -> int:
    texts = (example.input, example.output or example.label or "")
    return sum(len(text) * (1 if text.isascii() else _MAX_TOKENS_PER_CHARACTER) for text in texts)
