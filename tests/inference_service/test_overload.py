"""Five times what a replica can do, in seconds: the accepted are served in bounded time, the others are told at once.
And idle crowds.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from statistics import median
from typing import Any

import grpc
import psutil
import pytest

from inference_service.engine.engine import Engine
from shared.errors import Overloaded
from shared.rpc.errors import error_from_rpc
from tests.inference_service.replica import Replica, running_replica, stream_request
from tests.retry_info import told_delay_seconds

STEP_SECONDS = 0.05
NEW_TOKENS = 8


@pytest.fixture
def slow_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step takes its time, so that the capacity is known: rows / (steps x time)."""
    step = Engine.step

    def slow(self: Engine) -> Any:
        time.sleep(STEP_SECONDS)
        return step(self)

    monkeypatch.setattr(Engine, "step", slow)


async def ask(replica: Replica) -> tuple[str, float]:
    """How a stream ended, and after how long."""
    begun = time.monotonic()
    try:
        async for _ in replica.stub.GenerateStream(
            stream_request(max_new_tokens=NEW_TOKENS, ignore_eos=True), timeout=60
        ):
            pass
    except grpc.aio.AioRpcError as error:
        if not (isinstance(error_from_rpc(error), Overloaded) and told_delay_seconds(error)):
            raise
        return "refused", time.monotonic() - begun
    return "served", time.monotonic() - begun


@pytest.mark.usefixtures("slow_engine")
async def test_five_times_the_capacity_is_served_or_refused_at_once(tiny_model_dir: Path, tmp_path: Path) -> None:
    rows, queue = 4, 8
    async with running_replica(tiny_model_dir, tmp_path, max_running=rows, max_waiting=queue) as replica:
        alone = [await ask(replica) for _ in range(3)]
        seconds_alone = max(seconds for _, seconds in alone)
        await asyncio.gather(
            *(ask(replica) for _ in range(2 * (rows + queue)))
        )  # memory that a first crowd takes for good
        process = psutil.Process()
        memory, descriptors, threads = process.memory_info().rss, process.num_fds(), process.num_threads()
        calls, begun, per_second = [], time.monotonic(), 5 * rows / seconds_alone
        while time.monotonic() - begun < 4.0:
            calls.append(asyncio.create_task(ask(replica)))
            await asyncio.sleep(max(0.0, begun + len(calls) / per_second - time.monotonic()))
        outcomes = await asyncio.gather(*calls)
        served = [seconds for how, seconds in outcomes if how == "served"]
        refused = [seconds for how, seconds in outcomes if how == "refused"]
        assert len(served) > 10
        assert len(refused) > len(served), "this was no overload"
        # Other processes of the machine delay both in the same way. An unbounded queue would refuse nothing.
        assert median(refused) < median(served), "refused at once"
        assert process.memory_info().rss - memory < 64 << 20
        assert process.num_fds() <= descriptors + 2
        assert process.num_threads() <= threads + 2
        assert await replica.metric("requests_running") == await replica.metric("requests_waiting") == 0


async def test_a_thousand_idle_connections_cost_little_and_delay_no_call(tiny_model_dir: Path, tmp_path: Path) -> None:
    async with running_replica(tiny_model_dir, tmp_path) as replica:
        await replica.generate()
        process = psutil.Process()
        threads, memory = process.num_threads(), process.memory_info().rss
        idle = []
        for _ in range(1000):
            reader, writer = await asyncio.open_connection("127.0.0.1", replica.port)
            writer.write(
                b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"
            )  # the preface and empty settings
            await writer.drain()
            await reader.readexactly(9)  # the server's settings: the connection stands
            idle.append((reader, writer))
        await replica.generate()
        assert not any(reader.at_eof() for reader, _ in idle), "it waited for none of them to end"
        assert process.num_threads() <= threads + 4
        assert process.memory_info().rss - memory < 200 << 20  # both ends are in this process
        for _, writer in idle:
            writer.close()
        assert (await replica.generate()).output.token_ids
