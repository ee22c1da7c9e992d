"""From token ids to text while it streams: never half a character, never one lost. Knows tokenizers, not sequences.

A token may be a part of a UTF-8 character, and what a token adds may depend on the one before it (spaces in SentencePiece).
Byte-level tokenizers say exactly which bytes a token is: those go through an incremental UTF-8 decoder. Any other tokenizer is
asked to decode a short window with and without the new tokens (as TGI and vLLM do), held back while the end is not a character.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Protocol

REPLACEMENT = "\ufffd"
_WINDOW = 6


class Detokenizer(Protocol):
    """One stream's state. `push` gives the text that is certain so far, `flush` what remains, without an unfinished character."""

    def push(self, token_ids: Sequence[int]) -> str: ...

    def flush(self) -> str: ...


class DetokenizerFactory:
    """Makes a detokenizer for each stream; looks at the tokenizer once."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._table = _byte_table(tokenizer)

    def __call__(self) -> Detokenizer:
        return WindowDetokenizer(self._tokenizer) if self._table is None else ByteDetokenizer(self._table)


class ByteDetokenizer:
    """`table[token_id]` is the bytes of a token; special tokens have none. Ids beyond the table have none either."""

    def __init__(self, table: Sequence[bytes]) -> None:
        self._table = table
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_ids: Sequence[int]) -> str:
        table = self._table
        return self._decoder.decode(b"".join(table[i] for i in token_ids if i < len(table)))

    def flush(self) -> str:
        self._decoder.reset()
        return ""


class WindowDetokenizer:
    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._held = 0
        """How many of the last ids are not in the text yet."""

    def push(self, token_ids: Sequence[int]) -> str:
        self._ids.extend(token_ids)
        self._held += len(token_ids)
        return self._take(final=False)

    def flush(self) -> str:
        return self._take(final=True)

    def _take(self, *, final: bool) -> str:
        known = self._ids[: len(self._ids) - self._held]
        before = self._decode(known)
        after = self._decode(self._ids)
        if len(after) <= len(before):
            return ""
        fresh = after[len(before) :]
        # Five tokens that still end in a replacement character are no unfinished character (UTF-8 has at most four bytes).
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


@lru_cache(maxsize=8)
def _table_of(tokenizer: Any) -> tuple[bytes, ...] | None:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or type(backend.decoder).__name__ != "ByteLevel":
        return None
    to_byte = {char: byte for byte, char in _byte_alphabet().items()}
    added = backend.get_added_tokens_decoder()
    special = set(tokenizer.all_special_ids)
    table = []
    for index in range(len(tokenizer)):
        piece = backend.id_to_token(index)
        if piece is None or index in special or (index in added and added[index].special):
            table.append(b"")
        elif index in added or any(char not in to_byte for char in piece):
            table.append(piece.encode())
        else:
            table.append(bytes(to_byte[char] for char in piece))
    return tuple(table)


def _byte_table(tokenizer: Any) -> tuple[bytes, ...] | None:
    try:
        return _table_of(tokenizer)
    except TypeError:  # a tokenizer that can't be hashed
        return _table_of.__wrapped__(tokenizer)


def _byte_alphabet() -> dict[int, str]:
    """Byte -> printable character, as in byte-level BPE (Radford et al. 2019): printable Latin-1 is itself, the rest from 256 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {**{byte: chr(byte) for byte in printable}, **{byte: chr(256 + rank) for rank, byte in enumerate(others)}}
