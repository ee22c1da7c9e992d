"""The caller's half of a relay: streaming calls to one replica that share a stream (the other half is
`shared.rpc.relay`).

A link begins one once several calls run at a time, and uses it when the replica has answered: older replicas have no
relay, and their calls stay calls of gRPC.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import Any

import grpc
from prompttuning.v1 import relay_pb2

from shared.rpc.relay_wire import (
    BATCH_BYTES,
    MAX_ACTIONS,
    MAX_CALLS,
    MAX_METADATA_BYTES,
    MAX_REQUEST_BYTES,
    from_wire,
    metadata_bytes,
    to_wire,
)

_METHOD = "/prompttuning.v1.RelayService/Relay"
_LEAST_CALLS = 4
"""Running calls at which a relay is worth its own call."""
_MAX_SECONDS = 60.0
"""Age at which a relay gets no more calls, so that they follow the connection to the replica."""
_MAX_UNREAD_BYTES = 64 << 10
"""Unread bytes at which a call is paused; half of it at which it goes on."""
_PAUSE_SECONDS = 1.0
"""Time without a relay after one that broke or was refused."""
_CODES = {code.value[0]: code for code in grpc.StatusCode}

Metadata = Sequence[tuple[str, str]]


class Relays:
    """The relay of one channel, replaced when it is old or broken."""

    def __init__(self, channel: Any) -> None:
        self._channel = channel
        self._relay: _Relay | None = None
        self._not_before = 0.0
        self._is_known = True
        """False once the replica has answered that it has no relay."""

    def call(
        self, method: str, request: bytes, timeout: float | None, metadata: Metadata, num_calls: int
    ) -> RelayedCall | None:
        """Begin a call over the relay; None if it can't take it. `num_calls`: running calls of the channel."""
        relay, now = self._relay, asyncio.get_running_loop().time()
        if relay is not None and (relay.is_over or now - relay.began > _MAX_SECONDS):
            relay.retire()
            self._not_before = now + _PAUSE_SECONDS if relay.is_over else now
            self._is_known = self._is_known and not relay.is_unknown
            relay = self._relay = None
        if relay is None and self._is_known and num_calls >= _LEAST_CALLS and now >= self._not_before:
            self._relay = _Relay(self._channel)
        if relay is None or not relay.is_open or len(request) > MAX_REQUEST_BYTES or relay.num_calls >= MAX_CALLS:
            return None
        entries = to_wire(metadata)
        return None if metadata_bytes(entries) > MAX_METADATA_BYTES else relay.call(method, request, timeout, entries)


class _Relay:
    """One stream to a replica."""

    def __init__(self, channel: Any) -> None:
        self.began = asyncio.get_running_loop().time()
        self.is_open = self.is_over = self.is_unknown = False
        self._is_retired = False
        self._calls: dict[int, RelayedCall] = {}
        self._numbers = itertools.count(1)
        self._actions = deque[relay_pb2.RelayAction]()
        self._filled = asyncio.Event()
        write, read = relay_pb2.RelayRequest.SerializeToString, relay_pb2.RelayResponse.FromString
        self._call = channel.stream_stream(_METHOD, write, read)()
        self._tasks = [asyncio.create_task(work) for work in (self._send(), self._read())]

    @property
    def num_calls(self) -> int:
        """Running calls, and the unsent parts of others."""
        return max(len(self._calls), len(self._actions))

    def call(
        self, method: str, request: bytes, timeout: float | None, metadata: list[relay_pb2.RelayMetadata]
    ) -> RelayedCall:
        """Begin a call."""
        begin = relay_pb2.RelayBegin(method=method, request=request, metadata=metadata)
        if timeout is not None:
            begin.timeout.FromNanoseconds(int(timeout * 1e9))
        number = next(self._numbers)
        call = self._calls[number] = RelayedCall(self, number, timeout)
        self.act(relay_pb2.RelayAction(call=number, begin=begin))
        return call

    def act(self, action: relay_pb2.RelayAction) -> None:
        """Send what a caller does, with the next message."""
        self._actions.append(action)
        self._filled.set()

    def forget(self, number: int) -> None:
        """Drop what still arrives for a call."""
        self._calls.pop(number, None)
        self._filled.set()

    def retire(self) -> None:
        """End the stream after its last call."""
        self._is_retired = True
        self._filled.set()

    async def _send(self) -> None:
        try:
            await self._call.write(relay_pb2.RelayRequest())
            while not self._is_retired or self._calls or self._actions:
                self._filled.clear()
                if not self._actions:
                    await self._filled.wait()
                    continue
                batch, num_bytes = list[relay_pb2.RelayAction](), 0
                while self._actions and num_bytes < BATCH_BYTES and len(batch) < MAX_ACTIONS:
                    batch.append(self._actions.popleft())
                    num_bytes += batch[-1].ByteSize()
                await self._call.write(relay_pb2.RelayRequest(actions=batch))
            await self._call.done_writing()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            pass  # the reader learns why

    async def _read(self) -> None:
        error = grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, details="the relay ended")
        try:
            while (response := await self._call.read()) is not grpc.aio.EOF:
                self.is_open = True
                for answer in response.answers:
                    if (call := self._calls.get(answer.call)) is not None:
                        call.got(answer)
        except grpc.aio.AioRpcError as caught:
            self.is_unknown = caught.code() is grpc.StatusCode.UNIMPLEMENTED
            error = caught
        finally:
            self.is_open, self.is_over = False, True
            for call in list(self._calls.values()):
                call.failed(error.details() or "")
            self._actions.clear()
            self.retire()


class RelayedCall:
    """A call of a relay, with what routing uses of gRPC's call objects."""

    def __init__(self, relay: _Relay, number: int, timeout: float | None) -> None:
        self._relay, self._number = relay, number
        self._messages, self._unread, self._is_paused = deque[bytes](), 0, False
        self._initial: Any = ()
        self._error: grpc.aio.AioRpcError | None = None
        self._trailing: Any = ()
        self._is_over = False
        self._changed = asyncio.Event()
        expire = partial(self._abandon, grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")
        loop = asyncio.get_running_loop()
        self._timer = None if timeout is None else loop.call_later(timeout, expire)

    def got(self, answer: relay_pb2.RelayAnswer) -> None:
        """Take the next part of the answer."""
        if answer.initial_metadata:
            self._initial = from_wire(answer.initial_metadata)
        if answer.HasField("message"):
            self._messages.append(answer.message)
            self._unread += len(answer.message)
            if self._unread > _MAX_UNREAD_BYTES and not self._is_paused:
                self._pause(True)
        if answer.HasField("end"):
            end = answer.end
            self._ended(_CODES.get(end.code, grpc.StatusCode.UNKNOWN), end.details, from_wire(end.trailing_metadata))
        self._changed.set()

    def failed(self, details: str) -> None:
        """End the call: the relay has broken."""
        self._ended(grpc.StatusCode.UNAVAILABLE, details, ())

    async def read(self) -> Any:
        """The next message, or EOF. Raises AioRpcError for a status that is not OK."""
        while not self._messages and not self._is_over:
            self._changed.clear()
            await self._changed.wait()
        if not self._messages:
            if self._error is not None:
                raise self._error
            return grpc.aio.EOF
        message = self._messages.popleft()
        self._unread -= len(message)
        if self._is_paused and self._unread <= _MAX_UNREAD_BYTES // 2:
            self._pause(False)
        return message

    async def initial_metadata(self) -> Any:
        """The initial metadata, after the first message."""
        return self._initial

    async def trailing_metadata(self) -> Any:
        """The trailing metadata, after the end."""
        return self._trailing

    def cancel(self) -> None:
        """End the call, if it still runs."""
        self._abandon(grpc.StatusCode.CANCELLED, "")

    def _pause(self, pause: bool) -> None:
        self._is_paused = pause
        if not self._is_over:
            self._relay.act(relay_pb2.RelayAction(call=self._number, pause=pause))

    def _abandon(self, code: grpc.StatusCode, details: str) -> None:
        if not self._is_over:
            self._relay.act(relay_pb2.RelayAction(call=self._number, cancel=True))
            self._ended(code, details, ())

    def _ended(self, code: grpc.StatusCode, details: str, trailing: Any) -> None:
        if self._is_over:
            return
        self._is_over, self._trailing = True, trailing
        if code is not grpc.StatusCode.OK:
            initial, last = (grpc.aio.Metadata(*found) for found in (self._initial, trailing))
            self._error = grpc.aio.AioRpcError(code, initial, last, details=details)
        if self._timer is not None:
            self._timer.cancel()
        self._relay.forget(self._number)
        self._changed.set()
