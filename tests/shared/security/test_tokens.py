"""Tokens of callers: their length, and hashes that are compared."""

from __future__ import annotations

from shared.security.tokens import find_hash, hash_token, is_token, new_token


def test_tokens_are_long_and_kept_as_hashes_only() -> None:
    tokens = {new_token() for _ in range(100)}
    assert len(tokens) == 100
    assert all(is_token(token) for token in tokens)
    token = tokens.pop()
    assert find_hash(hash_token(token), [hash_token(other) for other in [*tokens, token]]) == hash_token(token)
    assert find_hash(hash_token("x"), [hash_token(token)]) is None
    for bad in ("", "short", "a" * 31, "a" * 40 + " ", "a" * 9000, "ä" * 40):
        assert not is_token(bad)
