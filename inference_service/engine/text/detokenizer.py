"""From token ids to text while it streams: never half a character, never one lost. Knows tokenizers, not sequences.

A token may be a part of a UTF-8 character, and what a token adds may depend on the one before it (spaces in
SentencePiece). Byte-level and byte-fallback tokenizers say exactly which bytes a token is (`token_bytes`): those go
through an incremental UTF-8 decoder. Any other is asked to decode a short window with and without the new token (as TGI
and vLLM do), held back while its end is no character.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Any, Protocol

from inference_service.engine.text.token_bytes import ByteTable, byte_table

REPLACEMENT = "\ufffd"
_WINDOW = 6


class Detokenizer(Protocol):
    """One stream's state. `push` gives the text that is certain so far, `flush` what remains, without an unfinished
    character.
    """

    def push(self, token_ids: Sequence[int]) -> str: ...

    def flush(self) -> str: ...


class DetokenizerFactory:
    """Makes a detokenizer for each stream; looks at the tokenizer once."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._table = byte_table(tokenizer)

    def __call__(self, before: Sequence[int] = ()) -> Detokenizer:
        """`before`: ids of the text that the stream goes on from; without them it begins a text, which some tokenizers
        strip of a space.
        """
        if self._table is None:
            return WindowDetokenizer(self._tokenizer, before)
        return ByteDetokenizer(self._table, begins=not before)


class ByteDetokenizer:
    def __init__(self, table: ByteTable, begins: bool = True) -> None:
        self._table = table.pieces
        self._leading = table.stripped_spaces if begins else 0
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_ids: Sequence[int]) -> str:
        table = self._table
        text = self._decoder.decode(b"".join(table[i] for i in token_ids if i < len(table)))
        if self._leading and text:
            kept = text.removeprefix(" " * min(self._leading, len(text) - len(text.lstrip(" "))))
            self._leading = 0
            return kept
        return text

    def flush(self) -> str:
        self._decoder.reset()
        return ""


class WindowDetokenizer:
    def __init__(self, tokenizer: Any, before: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._ids = list(before[-_WINDOW:])
        self._held = 0
        """How many of the last ids are not in the text yet."""

    def push(self, token_ids: Sequence[int]) -> str:
        # One at a time: a whole run of byte tokens is replaced if its last character is unfinished.
        return "".join(map(self._push_one, token_ids))

    def flush(self) -> str:
        return self._take(final=True)

    def _push_one(self, token_id: int) -> str:
        self._ids.append(token_id)
        self._held += 1
        return self._take(final=False)

    def _take(self, *, final: bool) -> str:
        known = self._ids[: len(self._ids) - self._held]
        before = self._decode(known)
        after = self._decode(self._ids)
        if len(after) <= len(before):
            return ""
        fresh = after[len(before) :]
        # Five tokens that still end in a replacement character are no unfinished character (UTF-8 has at most four
        # bytes).
        if fresh.endswith(REPLACEMENT) and self._held < 5:
            if not final:
                return ""
            fresh = fresh.rstrip(REPLACEMENT)
        self._ids = self._ids[-_WINDOW:]
        self._held = 0
        return fresh

    def _decode(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text
