"""Checksums of log entries and snapshots: the last field of the JSON is the SHA-256 of the bytes without it.

Readers ignore it, so an entry that was changed by hand still loads. `store verify` reports it.
"""

from __future__ import annotations

import hashlib
import json


def with_checksum(data: bytes) -> bytes:
    """A JSON object with its checksum as an additional last field."""
    return data[:-1] + _field(data)


def checksum_matches(data: bytes) -> bool | None:
    """Whether a valid JSON object is unchanged; None if it has no checksum, as those of earlier builds."""
    if "checksum" not in json.loads(data):
        return None
    without = data[: -len(_field(b""))] + b"}"
    return data == with_checksum(without)


def _field(data: bytes) -> bytes:
    return f',"checksum":"sha256:{hashlib.sha256(data).hexdigest()}"}}'.encode()
