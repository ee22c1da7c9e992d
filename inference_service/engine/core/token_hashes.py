"""Hashes of the beginnings of a sequence, with which long sequences are compared in microseconds.

As in vLLM's prefix cache, the hash of a block of tokens includes that of the block before it, so one comparison tells
whether everything up to the end of a block is the same.
"""

from __future__ import annotations

from bisect import bisect_left
from functools import cached_property

HASHED_TOKENS = 32


class TokenHashes:
    """Hashes of the first 32, 64, ... of `tokens`, made when they are first needed. Tokens may only be appended.

    Different tokens can have the same hash: compare the tokens before relying on an answer.
    """

    def __init__(self, tokens: list[int]) -> None:
        self._tokens = tokens
        self._hashes: list[int] = []

    def forget(self, count: int) -> None:
        """Forget what depends on tokens after the first `count`, which are about to be replaced."""
        del self._hashes[count // HASHED_TOKENS :]

    def common_length(self, other: TokenHashes, limit: int) -> int:
        """Number of tokens that both have in common at their beginning; both must have at least `limit`."""
        own, others = self._of_blocks(limit), other._of_blocks(limit)
        blocks = limit // HASHED_TOKENS
        begin = HASHED_TOKENS * bisect_left(range(blocks), True, key=lambda block: own[block] != others[block])
        end = min(limit, begin + HASHED_TOKENS)
        pairs = zip(self._tokens[begin:end], other._tokens[begin:end], strict=True)
        return next((begin + index for index, (one, two) in enumerate(pairs) if one != two), end)

    def begins_as(self, other: TokenHashes, count: int) -> bool:
        """Whether both have at least `count` tokens and the first `count` are the same."""
        if min(len(self._tokens), len(other._tokens)) < count:
            return False
        blocks = count // HASHED_TOKENS
        begin = blocks * HASHED_TOKENS
        if self._tokens[begin:count] != other._tokens[begin:count]:
            return False
        return not blocks or self._of_blocks(count)[blocks - 1] == other._of_blocks(count)[blocks - 1]

    def _of_blocks(self, count: int) -> list[int]:
        """The hash of each whole block of the first `count` tokens, and perhaps of later ones."""
        count = min(count, len(self._tokens))  # tokens may be appended to a partial block
        for begin in range(len(self._hashes) * HASHED_TOKENS, count - HASHED_TOKENS + 1, HASHED_TOKENS):
            before = self._hashes[-1] if self._hashes else 0
            self._hashes.append(hash((before, *self._tokens[begin : begin + HASHED_TOKENS])))
        return self._hashes


class HashedTokens:
    """Base class of what has `tokens`: always the same list, to which tokens are only appended (see `forget`)."""

    tokens: list[int]

    @cached_property
    def hashes(self) -> TokenHashes:
        """Hashes of the beginnings of `tokens`."""
        return TokenHashes(self.tokens)
