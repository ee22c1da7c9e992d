"""The digest and the largest size of a version's bytes. Imports no torch: what only follows a store starts fast."""

from __future__ import annotations

import hashlib
import re

from shared.errors import InvalidInput

MAX_BLOB_BYTES = 256 << 20
"""The largest size limit of a version's file; a kind of prefix may have a smaller one."""
DIGEST_PATTERN = "sha256:[0-9a-f]{64}"
_DIGEST = re.compile(DIGEST_PATTERN)


def digest_of(data: bytes) -> str:
    """`sha256:<hex>` of the bytes."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def check_digest(digest: str) -> str:
    """Returns the digest. Raises InvalidInput if it is malformed, because digests become parts of paths."""
    if not _DIGEST.fullmatch(digest):
        raise InvalidInput.of("digest", f"{digest[:80]!r} must be sha256: and 64 lower-case hexadecimal digits")
    return digest
