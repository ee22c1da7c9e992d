"""Converts token ids to text while it streams, without splitting or losing characters. Knows tokenizers, not sequences.

A token may be a part of a UTF-8 character, and its text may depend on the token before it (spaces in SentencePiece).
Byte-level and byte-fallback tokenizers define the bytes of each token (`token_bytes`), which go through an incremental
UTF-8 decoder. Other tokenizers decode a short window with and without the new token (as in TGI and vLLM); the new text
is held back while it ends in an incomplete character.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Any, Protocol

from shared.text.token_bytes import ByteTable, byte_table

REPLACEMENT = "\ufffd"
_WINDOW = 6


class Detokenizer(Protocol):
    """One stream. `push` returns the text that is certain so far, `flush` the rest without an unfinished character."""

    def push(self, token_ids: Sequence[int]) -> str:
        """The text that these tokens complete; empty if no character is complete yet."""

    def flush(self) -> str:
        """The text that is left at the end of an answer."""


class DetokenizerFactory:
    """Creates a detokenizer for each stream; inspects the tokenizer once."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._table = byte_table(tokenizer)

    def __call__(self, before: Sequence[int] = (), *, exact: bool = False) -> Detokenizer:
        """Create the detokenizer of a stream that continues the text of the token ids `before`.

        Without `before` the stream begins a text; some tokenizers remove the first space of a text, unless the stream
        must be `exact`.
        """
        if self._table is None:
            return WindowDetokenizer(self._tokenizer, before)
        return ByteDetokenizer(self._table, begins=not (before or exact))


class ByteDetokenizer:
    """Decodes the bytes of tokens incrementally as UTF-8."""

    def __init__(self, table: ByteTable, begins: bool = True) -> None:
        self._table = table.pieces
        self._leading = table.stripped_spaces if begins else 0
        self._first_piece = table.first_piece if begins else None
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_ids: Sequence[int]) -> str:
        table = self._table
        shown = [i for i in token_ids if i < len(table) and table[i]]
        pieces = [table[i] for i in shown]
        if self._first_piece is not None and shown:
            pieces[0], self._first_piece = self._first_piece(shown[0]), None
        text = self._decoder.decode(b"".join(pieces))
        if self._leading and text:
            kept = text.removeprefix(" " * min(self._leading, len(text) - len(text.lstrip(" "))))
            self._leading = 0
            return kept
        return text

    def flush(self) -> str:
        self._decoder.reset()
        return ""


class WindowDetokenizer:
    """Decodes a window of the last tokens with and without the new one; works for any tokenizer."""

    def __init__(self, tokenizer: Any, before: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._ids = list(before[-_WINDOW:])
        self._held = 0
        """Number of last ids whose text was not returned yet."""

    def push(self, token_ids: Sequence[int]) -> str:
        # One at a time: the tokenizer replaces a whole series of byte tokens if its last character is unfinished.
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
        # After five tokens a replacement character is not an unfinished character (UTF-8 has at most four bytes).
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
