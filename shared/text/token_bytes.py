"""The bytes of each token, for tokenizers whose decoder treats every token independently."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True)
class ByteTable:
    """The bytes of each token.

    `pieces[token_id]` is empty for special tokens. The decoder removes up to `stripped_spaces` leading spaces of a
    text.
    """

    pieces: tuple[bytes, ...]
    stripped_spaces: int = 0
    first_piece: Callable[[int], bytes] | None = None
    """The bytes of a text's first token, where the decoder is Metaspace, which removes all marks of spaces from it."""


@dataclass
class _Rules:
    byte_level: bool = False
    byte_fallback: bool = False
    stripped_spaces: int = 0
    dropped_mark: str = ""
    replacements: tuple[tuple[str, str], ...] = ()

    def bytes_of(self, piece: str) -> bytes:
        if self.byte_level and all(char in _TO_BYTE for char in piece):
            return bytes(_TO_BYTE[char] for char in piece)
        found = _BYTE_TOKEN.fullmatch(piece) if self.byte_fallback else None
        if found is not None:
            return bytes([int(found[1], 16)])
        for pattern, content in self.replacements:
            piece = piece.replace(pattern, content)
        return piece.encode()


def byte_table(tokenizer: Any) -> ByteTable | None:
    """The byte table of a tokenizer, or None if its decoder works differently (WordPiece and the like)."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or backend.decoder is None:
        return None
    rules = _rules(json.loads(backend.decoder.__getstate__()))
    if rules is None:
        return None
    added = backend.get_added_tokens_decoder()
    special = {*tokenizer.all_special_ids, *(index for index, token in added.items() if token.special)}
    size = max(len(tokenizer), max(added, default=-1) + 1)
    pieces = []
    for index in range(size):
        piece = backend.id_to_token(index)
        if piece is None or index in special:
            pieces.append(b"")
        else:
            pieces.append(piece.encode() if rules.byte_level and index in added else rules.bytes_of(piece))
    mark = rules.dropped_mark

    def first_piece(index: int) -> bytes:
        return rules.bytes_of((backend.id_to_token(index) or "").replace(mark, ""))

    return ByteTable(tuple(pieces), rules.stripped_spaces, first_piece if mark else None)


def _rules(decoder: dict[str, Any]) -> _Rules | None:
    """The rules of the decoder, or None if it has a step that doesn't treat tokens independently."""
    rules, is_fused = _Rules(), False
    steps = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
    for step in steps:
        match step:
            case {"type": "ByteLevel"}:
                rules.byte_level = is_fused = True
            case {"type": "ByteFallback"}:
                rules.byte_fallback = True
            case {"type": "Fuse"}:
                is_fused = True
            case {"type": "Replace", "pattern": {"String": pattern}, "content": content} if (
                not is_fused or len(pattern) == 1
            ):
                rules.replacements += ((pattern, content),)
            case {"type": "Strip", "content": " ", "start": start, "stop": 0} if is_fused:  # else of every token
                rules.stripped_spaces = start
            case {"type": "Metaspace", "replacement": mark} if not is_fused:
                rules.replacements += ((mark, " "),)
                rules.dropped_mark = mark if step.get("prepend_scheme") != "never" else ""
            case _:
                return None
    return rules if steps else None


def _byte_alphabet() -> dict[int, str]:
    """Byte to printable character, as in byte-level BPE (Radford et al. 2019).

    Printable Latin-1 characters map to themselves, the other bytes to characters from 256 on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {**{byte: chr(byte) for byte in printable}, **{byte: chr(256 + rank) for rank, byte in enumerate(others)}}


_TO_BYTE = {char: byte for byte, char in _byte_alphabet().items()}
