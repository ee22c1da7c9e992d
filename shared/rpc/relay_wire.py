"""What both halves of a relay agree on: limits, and metadata as messages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from prompttuning.v1 import relay_pb2

MAX_REQUEST_BYTES = 64 << 10
"""Largest request of a relayed call: it is read before its caller is known."""
MAX_METADATA_BYTES = 16 << 10
"""The largest metadata of a relayed call; gRPC has the same limit for other calls."""
MAX_ACTIONS = 1000
"""Maximum number of actions in one message."""
MAX_CALLS = 1000
"""Maximum number of simultaneous calls of one relay."""
BATCH_BYTES = 256 << 10
"""Target size of a relay's messages; a larger part is sent alone."""

Pairs = Sequence[tuple[str, str | bytes]]


def to_wire(pairs: Iterable[tuple[str, str | bytes]]) -> list[relay_pb2.RelayMetadata]:
    """Metadata as messages."""
    encoded = ((key, value.encode() if isinstance(value, str) else value) for key, value in pairs)
    return [relay_pb2.RelayMetadata(key=key, value=value) for key, value in encoded]


def from_wire(entries: Iterable[relay_pb2.RelayMetadata]) -> Pairs:
    """Metadata of messages, as gRPC gives it."""
    return tuple(
        (entry.key, entry.value if entry.key.endswith("-bin") else entry.value.decode(errors="replace"))
        for entry in entries
    )


def metadata_bytes(entries: Iterable[relay_pb2.RelayMetadata]) -> int:
    """The size of metadata: keys and values."""
    return sum(len(entry.key) + len(entry.value) for entry in entries)
