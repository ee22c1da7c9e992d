"""The bytes and text of single tokens, for log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from inference_service.engine.core import request
from inference_service.engine.core.request import Delta
from shared.text.token_bytes import byte_table
from shared.values.generation import GenerationDelta, InputToken, TokenAlternative, TokenLogprob

_CACHED = 65_536


class TokenTexts:
    """Bytes and texts of a tokenizer's tokens, also of control tokens such as `<|im_end|>`, which streams hide."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._table = byte_table(tokenizer)
        self._special = frozenset(tokenizer.all_special_ids)
        self.bytes_of = lru_cache(_CACHED)(self._bytes_of)

    def text_of(self, token_id: int) -> str:
        """The token's text, with U+FFFD for incomplete characters: a token may be a part of one."""
        return self.bytes_of(token_id).decode("utf-8", errors="replace")

    def shown(self, delta: Delta) -> GenerationDelta:
        """The delta with the texts of its tokens."""
        logprobs = tuple(
            TokenLogprob(
                one.token_id,
                one.logprob,
                self._alternatives(one),
                self.text_of(one.token_id),
                self.bytes_of(one.token_id),
            )
            for one in delta.logprobs
        )
        return GenerationDelta(delta.text, delta.token_ids, logprobs, delta.index)

    def shown_input(self, token_ids: Sequence[int], logprobs: Sequence[request.TokenLogprob]) -> tuple[InputToken, ...]:
        """The tokens of an input with their texts. `logprobs`: of all but the first, which nothing precedes."""
        return tuple(
            InputToken(
                token,
                None if one is None else one.logprob,
                () if one is None else self._alternatives(one),
                self.text_of(token),
                self.bytes_of(token),
            )
            for token, one in zip(token_ids, (None, *logprobs), strict=False)
        )

    def _alternatives(self, found: request.TokenLogprob) -> tuple[TokenAlternative, ...]:
        return tuple(TokenAlternative(id, value, self.text_of(id), self.bytes_of(id)) for id, value in found.top)

    def _bytes_of(self, token_id: int) -> bytes:
        if self._table is not None and token_id < len(self._table.pieces) and (piece := self._table.pieces[token_id]):
            return piece
        text: str
        if self._table is None and token_id not in self._special:
            text = self._tokenizer.decode([token_id], clean_up_tokenization_spaces=False)
        else:
            text = (
                self._tokenizer.convert_ids_to_tokens(token_id) or ""
            )  # None: the model's vocabulary may be larger than its tokenizer's
        return text.encode("utf-8", errors="replace")
