"""The tokenizer as llguidance needs it: the bytes of every token, and the tokens of a text.

The bytes are those that the detokenizer writes (`token_bytes`), so a guide holds for exactly the text that a stream
carries.
"""

from __future__ import annotations

from typing import Any

from llguidance import LLTokenizer, TokenizerWrapper

from inference_service.engine.text.token_bytes import ByteTable, byte_table
from shared.text.plain_text import PlainText

_CONTROL_MARK = 0xFF
"""llguidance's mark of a control token; no UTF-8 text has this byte."""


class _Tokenizer:
    """What `TokenizerWrapper` wants. Text never becomes a control token."""

    bos_token_id = None

    def __init__(self, tokenizer: Any, table: ByteTable, vocab_size: int, end_id: int) -> None:
        self._plain = PlainText(tokenizer)
        self.eos_token_id = end_id
        control = self._plain.control_ids | set(tokenizer.all_special_ids)
        names = tokenizer.convert_ids_to_tokens(sorted(control))
        pieces = list(table.pieces[:vocab_size]) + [b""] * (vocab_size - len(table.pieces))
        pieces = [b"" if piece[:1] == bytes([_CONTROL_MARK]) else piece for piece in pieces]
        for token_id, name in zip(sorted(control), names, strict=True):
            if token_id < vocab_size:
                pieces[token_id] = (name or "").encode()
        self.tokens = pieces
        self.special_token_ids = [token_id for token_id in sorted(control) if token_id < vocab_size]

    def __call__(self, text: str | bytes) -> list[int]:
        plain = text.decode(errors="replace") if isinstance(text, bytes) else text
        return self._plain.ids(self._plain.quote(plain), continues=True)


def vocabulary(tokenizer: Any, vocab_size: int, end_id: int | None) -> tuple[LLTokenizer, ByteTable] | None:
    """The vocabulary of a model with `vocab_size` logits and its byte table.

    None if the tokenizer has no end token, or if its tokens have no bytes of their own (WordPiece and the like).
    Building takes about 10 us a token and holds the interpreter, so do it before requests arrive.
    """
    table = byte_table(tokenizer)
    if table is None or end_id is None:
        return None
    wrapper = TokenizerWrapper(_Tokenizer(tokenizer, table, vocab_size, end_id))
    return LLTokenizer(wrapper, eos_token=[end_id]), table
