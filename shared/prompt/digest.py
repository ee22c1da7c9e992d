"""Digests of a version's bytes. Imports no torch, so that processes that only follow a store start fast."""

from __future__ import annotations

import hashlib
import re

from shared.errors import InvalidInput

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def digest_of(data: bytes) -> str:
    """`sha256:<hex>` of the bytes."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def check_digest(digest: str) -> str:
    """Returns the digest. Raises InvalidInput if it is malformed, because digests become parts of paths."""
    if not _DIGEST.fullmatch(digest):
        raise InvalidInput.of("digest", f"{digest[:80]!r} must be sha256: and 64 lower-case hexadecimal digits")
    return digest
