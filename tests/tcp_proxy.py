"""A TCP proxy that can freeze: it accepts, takes bytes and forwards nothing, until `resume` is called. It can also cut
connections.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path


class TcpProxy:
    """Forwards to a port of this machine, or to a UNIX socket. Runs in its own thread; its methods may be called
    from any.
    """

    def __init__(self, target: int | Path) -> None:
        self._target = target
        self._loop = asyncio.new_event_loop()
        self._flows = asyncio.Event()
        self._flows.set()
        self._writers: set[asyncio.StreamWriter] = set()
        self.num_connections = 0
        """That were accepted."""
        self.port = 0
        started = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(started,), name="tcp-proxy", daemon=True)
        self._thread.start()
        started.wait()

    def hang(self) -> None:
        """From now on nothing is forwarded, on old connections and on new ones, without a sign."""
        self._do(self._flows.clear)

    def resume(self) -> None:
        """What was held back is forwarded now."""
        self._do(self._flows.set)

    def cut(self, *, reset: bool) -> None:
        """End every connection: with a reset, or in good order."""
        self._do(lambda: self._cut(reset))

    def is_closing(self) -> bool:
        """Whether one side of a connection has ended."""
        return any(writer.is_closing() for writer in tuple(self._writers))

    def close(self) -> None:
        self._do(self._stop)
        self._thread.join()

    def _do(self, act: Callable[[], object]) -> None:
        """Runs `act` in the loop's thread. Raises its error."""
        done = Future[None]()

        def run() -> None:
            try:
                act()
            except BaseException as error:
                done.set_exception(error)
            else:
                done.set_result(None)

        self._loop.call_soon_threadsafe(run)
        done.result()

    def _run(self, started: threading.Event) -> None:
        async def serve() -> None:
            self._stopped = asyncio.Event()
            server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
            self.port = server.sockets[0].getsockname()[1]
            started.set()
            await self._stopped.wait()
            server.close()
            self._cut(True)
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        self._loop.run_until_complete(serve())
        self._loop.close()

    def _stop(self) -> None:
        self._stopped.set()

    def _cut(self, reset: bool) -> None:
        for writer in self._writers:
            if reset and not writer.is_closing():  # the socket of one that closes may be gone
                linger = struct.pack("ii", 1, 0)
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            writer.close()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(
            asyncio.CancelledError
        ):  # asyncio's streams log a handler that was cancelled as failed
            await self._connect(reader, writer)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        self._writers.add(writer)
        try:
            await self._flows.wait()
            if isinstance(self._target, Path):
                far_reader, far_writer = await asyncio.open_unix_connection(str(self._target))
            else:
                far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.close()
            self._writers.discard(writer)
            return
        self._writers.add(far_writer)
        await asyncio.gather(self._pump(reader, far_writer), self._pump(far_reader, writer))
        self._writers -= {writer, far_writer}

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                await self._flows.wait()
                writer.write(data)
                await writer.drain()
        await self._flows.wait()
        writer.close()


@contextmanager
def tcp_proxy(target: int | Path) -> Iterator[TcpProxy]:
    proxy = TcpProxy(target)
    try:
        yield proxy
    finally:
        proxy.close()


@asynccontextmanager
async def silent_server() -> AsyncIterator[int]:
    """The port of a server that accepts connections and never says anything."""

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.CancelledError):
            await reader.read()
        writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
