"""The metrics port with clients that send slowly, too much, or without pause: scrapes are answered and memory is
bounded.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter

from shared.rpc import metrics
from shared.rpc.metrics import MetricsServer, serve_metrics
from tests.waiting import until

SCRAPER, CROWD = "127.0.0.1", "127.0.0.2"


@pytest.fixture
async def endpoint() -> AsyncIterator[MetricsServer]:
    registry = CollectorRegistry()
    Counter("jobs", "Jobs.", registry=registry).inc()
    server = serve_metrics(registry, "127.0.0.1", 0)
    yield server
    await asyncio.to_thread(server.close)


class Clients:
    """Connections that stay open until the test ends."""

    def __init__(self, port: int, stack: AsyncExitStack) -> None:
        self._port, self._stack = port, stack

    async def begin(self, address: str, data: bytes = b"GET /metr") -> asyncio.StreamReader:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port, local_addr=(address, 0))
        self._stack.callback(writer.close)
        writer.write(data)
        return reader


@pytest.fixture
async def clients(endpoint: MetricsServer) -> AsyncIterator[Clients]:
    async with AsyncExitStack() as stack:
        yield Clients(endpoint.port, stack)


async def scrape(clients: Clients, address: str = SCRAPER) -> bytes:
    return await (await clients.begin(address, b"GET /metrics HTTP/1.0\r\n\r\n")).read()


async def test_a_crowd_of_slow_clients_has_few_threads_and_a_scrape_among_them_is_answered(clients: Clients) -> None:
    before = threading.active_count()
    for _ in range(100):
        await clients.begin(CROWD)
    assert b"jobs_total 1.0" in await scrape(clients)

    async def is_answered() -> bool:
        return b"jobs_total 1.0" in await scrape(clients, CROWD)

    # Also one from the crowd's address, as through a proxy; at once if the threads of closed connections have ended.
    await until(is_answered)
    assert threading.active_count() - before <= 2 * metrics._MAX_CONNECTIONS_OF_ADDRESS + 1


async def test_slow_clients_of_one_address_end_each_others_connections_only(clients: Clients) -> None:
    slow = await clients.begin(SCRAPER)
    first = await clients.begin(CROWD)
    for _ in range(20):
        await clients.begin(CROWD)
    with suppress(ConnectionError):  # closed before it read all
        assert await first.read() == b""
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await slow.read()


async def test_all_connections_together_are_bounded(clients: Clients, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_MAX_CONNECTIONS", 6)
    for number in range(6):
        await clients.begin(f"127.0.1.{number + 1}")
    with suppress(ConnectionError):
        assert await scrape(clients) == b""


async def test_what_is_huge_or_no_scrape_is_answered_or_cut(clients: Clients) -> None:
    for data in (
        b"GET /" + b"a" * 1_000_000 + b" HTTP/1.0\r\n\r\n",
        b"GET /metrics HTTP/1.0\r\n" + b"x: y\r\n" * 100_000 + b"\r\n",
        b"GET /metrics HTTP/1.0\r\nx: " + b"y" * 1_000_000 + b"\r\n\r\n",
        b"POST /metrics HTTP/1.0\r\ncontent-length: 1000000000000\r\n\r\n" + b"x" * 1_000_000,
        b"\x16\x03\x01" + b"\0" * 100_000 + b"\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ):
        reader = await clients.begin(CROWD, data)
        with suppress(ConnectionError):
            assert len(await reader.read()) < 10_000, data[:30]
        assert b"jobs_total 1.0" in await scrape(clients), data[:30]


def test_scrapes_take_turns_and_a_fifth_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, rests = SimpleNamespace(now=0.0), list[float]()

    def sleep(seconds: float) -> None:
        rests.append(seconds)
        clock.now += seconds

    def application(environ: Any, start_response: Any) -> list[bytes]:
        clock.now += 0.1
        return [b""]

    monkeypatch.setattr(metrics, "time", SimpleNamespace(monotonic=lambda: clock.now, sleep=sleep))
    paced = metrics._Paced(application)
    for _ in range(10):
        paced({}, lambda *_: None)  # type: ignore[arg-type]
    assert clock.now == pytest.approx(10 * 0.1 + 9 * 0.4)
    clock.now += 15
    rests.clear()
    paced({}, lambda *_: None)  # type: ignore[arg-type]
    assert rests == [0.0]
