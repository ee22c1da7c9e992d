"""Bearer tokens: long random strings that are kept as SHA-256 only.

A token has 256 bits from the operating system, so a fast hash is enough: nobody can try that many. What people choose
themselves has far less, and is refused by its length.
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
    """`spt_` helps whoever searches repositories and logs for leaked ones."""
    return TOKEN_PREFIX + secrets.token_urlsafe(32)


def is_token(text: str) -> bool:
    """Whether it has the form of a token (RFC 6750) and enough characters to be one."""
    return _TOKEN.fullmatch(text) is not None


def hash_token(token: str) -> str:
    """64 hexadecimal digits, as a callers file has them."""
    return hashlib.sha256(token.encode()).hexdigest()


def find_hash(digest: str, known: Iterable[str]) -> str | None:
    """The one of `known` that equals `digest`. Takes as long whichever it is, or if it is none of them."""
    found = None
    for candidate in known:
        if hmac.compare_digest(candidate, digest):
            found = candidate
    return found
