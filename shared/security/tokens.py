"""Bearer tokens: long random strings that are stored only as SHA-256 digests.

A token has 256 random bits from the operating system, so that guessing is infeasible even with a fast hash. Short
strings are refused because people might have chosen them.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable

TOKEN_PREFIX = "spt_"
MIN_TOKEN_CHARS, MAX_TOKEN_CHARS = 32, 8192
_TOKEN = re.compile(rf"[A-Za-z0-9._~+/=-]{{{MIN_TOKEN_CHARS},{MAX_TOKEN_CHARS}}}")


def new_token() -> str:
    """A new random token. Its prefix `spt_` helps scanners find leaked tokens in repositories and logs."""
    return TOKEN_PREFIX + secrets.token_urlsafe(32)


def is_token(text: str) -> bool:
    """Whether the text has the characters (RFC 6750) and the length of a token."""
    return _TOKEN.fullmatch(text) is not None


def hash_token(token: str) -> str:
    """SHA-256 digest of a token as 64 hexadecimal digits, the form in a callers file."""
    return hashlib.sha256(token.encode()).hexdigest()


def find_hash(digest: str, known: Iterable[str]) -> str | None:
    """The element of `known` that equals `digest`, or None. Takes the same time in each case."""
    found = None
    for candidate in known:
        if hmac.compare_digest(candidate, digest):
            found = candidate
    return found
