"""One channel for each replica, with the number of calls that run over it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import grpc

from softprompt.routing.directory import Replica
from softprompt.routing.relay import Relays

SERVICE = "/prompttuning.v1.GenerationService/"
STREAMING = "GenerateStream"
_READY, _BROKEN = grpc.ChannelConnectivity.READY, grpc.ChannelConnectivity.TRANSIENT_FAILURE


class Link:
    """The connection to one replica. Requests and responses are serialized messages."""

    def __init__(self, replica: Replica, channel: Any) -> None:
        self.replica, self.in_flight = replica, 0
        self.is_wrong = False
        """Whether something other than a replica answered at this address."""
        self._channel = channel
        self._methods: dict[str, Any] = {}
        self._relays = Relays(channel)

    @property
    def load(self) -> int:
        """Calls of this process that run there, and requests that wait there."""
        return self.in_flight + self.replica.waiting

    @property
    def rank(self) -> int:
        """0: connected and healthy; 1: connecting; 2: unreachable, reports NOT_SERVING, or not a replica."""
        state = self._channel.get_state(try_to_connect=True)
        return 2 if self.is_wrong else 0 if state is _READY else 2 if state is _BROKEN else 1

    def call(self, name: str, request: bytes, timeout: float | None, metadata: Sequence[tuple[str, str]]) -> Any:
        """Begin a call of a method: one of gRPC, or one over the relay."""
        if name == STREAMING:
            relayed = self._relays.call(SERVICE + name, request, timeout, metadata, self.in_flight)
            if relayed is not None:
                return relayed
        if name not in self._methods:
            kind = self._channel.unary_stream if name == STREAMING else self._channel.unary_unary
            self._methods[name] = kind(SERVICE + name, None, None)
        return self._methods[name](request, timeout=timeout, metadata=metadata)

    @contextmanager
    def used(self) -> Iterator[None]:
        """Count a call inside the `with` block."""
        self.in_flight += 1
        try:
            yield
        finally:
            self.in_flight -= 1

    async def close(self) -> None:
        """Close the channel. Calls over it are cancelled."""
        await self._channel.close()


class Links:
    """The links to all replicas of a directory. Use it in one event loop."""

    def __init__(self, open_channel: Callable[[str], Any]) -> None:
        """`open_channel`: a channel to an address, for messages as bytes, without retries of its own."""
        self._open_channel = open_channel
        self._links: dict[str, Link] = {}
        self._leaving: list[Link] = []
        self._closing: set[asyncio.Task[None]] = set()
        self._seen: Sequence[Replica] | None = None

    def to(self, replicas: Sequence[Replica]) -> list[Link]:
        """The links to these replicas, one for each address. One whose record is gone stays while its connection is
        healthy: records age if the store can't be written. One that leaves is closed after its last call.
        """
        if replicas is self._seen and len(self._links) == len(replicas) and not self._leaving:
            return list(self._links.values())
        self._seen = replicas
        wanted = {replica.address: replica for replica in replicas}
        for address, link in list(self._links.items()):
            if address in wanted:
                link.is_wrong = link.is_wrong and link.replica.id == wanted[address].id
                link.replica = wanted[address]
            elif link.rank != 0:
                self._leaving.append(self._links.pop(address))
        for address, replica in wanted.items():
            if address not in self._links:
                self._links[address] = Link(replica, self._open_channel(address))
        for link in [link for link in self._leaving if not link.in_flight]:
            self._leaving.remove(link)
            task = asyncio.get_running_loop().create_task(link.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)
        return list(self._links.values())

    async def close(self) -> None:
        """Close all channels."""
        await asyncio.gather(*self._closing, *(link.close() for link in (*self._links.values(), *self._leaving)))
        self._links, self._leaving = {}, []
