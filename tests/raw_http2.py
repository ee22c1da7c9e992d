"""A gRPC client that behaves as no library would: arbitrary bytes on a connection, and no reading if it
doesn't want to.

As much of HTTP/2 (RFC 9113) as one call takes; headers are literals without Huffman codes (RFC 7541, 6.2.2).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

_DATA, _HEADERS, _SETTINGS = 0, 1, 4
_ACK, _END_STREAM, _END_HEADERS = 1, 1, 4
_INITIAL_WINDOW_SIZE = 4
_STREAM = 1


class RawCall:
    """One call on its own connection."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer

    async def send(self, data: bytes, is_last: bool = False) -> None:
        """One DATA frame. A message is `framed` once, in however many of them."""
        self._writer.write(_frame(_DATA, _END_STREAM if is_last else 0, _STREAM, data))
        await self._writer.drain()


def framed(message: bytes) -> bytes:
    """A message as gRPC puts it on a stream: not compressed, its length, itself."""
    return b"\0" + len(message).to_bytes(4, "big") + message


@asynccontextmanager
async def raw_call(
    port: int, method: str, window_bytes: int = 65_535, metadata: Mapping[str, bytes] | None = None
) -> AsyncIterator[RawCall]:
    """The headers of a call of `/service/method` are sent. `window_bytes`: how much of an answer the server may send,
    ever.

    `metadata`: further headers; a value has at most 126 bytes.
    """
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        headers = {":method": "POST", ":scheme": "http", ":path": method, ":authority": "test", "te": "trailers"}
        encoded = {
            name: value.encode() for name, value in {**headers, "content-type": "application/grpc"}.items()
        } | dict(metadata or {})
        block = b"".join(_literal(name, value) for name, value in encoded.items())
        writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        writer.write(_frame(_SETTINGS, 0, 0, _INITIAL_WINDOW_SIZE.to_bytes(2, "big") + window_bytes.to_bytes(4, "big")))
        writer.write(_frame(_SETTINGS, _ACK, 0, b""))
        writer.write(_frame(_HEADERS, _END_HEADERS, _STREAM, block))
        await writer.drain()
        yield RawCall(writer)
    finally:
        writer.close()


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def _literal(name: str, value: bytes) -> bytes:
    return b"\0" + b"".join(bytes([len(text)]) + text for text in (name.encode(), value))
