"""Of five times as many requests as a replica can hold, it serves those that it accepts and refuses the others at once.
Idle connections cost it little.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import grpc
import psutil

from shared.errors import Overloaded
from shared.rpc.errors import error_from_rpc
from tests.inference_service.conftest import LONG_ANSWER, Brake
from tests.inference_service.replica import Replica, running_replica, stream_request
from tests.retry_info import retry_delay_seconds
from tests.waiting import until


async def ask(replica: Replica) -> str:
    """How a stream ended."""
    try:
        async for _ in replica.stub.GenerateStream(stream_request(max_new_tokens=LONG_ANSWER, ignore_eos=True)):
            pass
    except grpc.aio.AioRpcError as error:
        if not (isinstance(error_from_rpc(error), Overloaded) and retry_delay_seconds(error)):
            raise
        return "refused"
    return "served"


async def test_five_times_the_capacity_is_served_or_refused_at_once(
    tiny_model_dir: Path, tmp_path: Path, brake: Brake
) -> None:
    rows, queue = 4, 8
    async with running_replica(tiny_model_dir, tmp_path, max_running=rows, max_waiting=queue) as replica:

        async def crowd() -> None:
            brake.holds = True  # no place becomes free
            calls = [asyncio.create_task(ask(replica)) for _ in range(5 * (rows + queue))]
            await until(lambda: sum(call.done() for call in calls) >= 4 * (rows + queue))
            assert {call.result() for call in calls if call.done()} == {"refused"}, "refused at once"
            brake.holds = False
            outcomes = Counter(await asyncio.gather(*calls))
            assert queue <= outcomes["served"] <= rows + queue

        await crowd()  # takes memory for good
        process = psutil.Process()
        memory, descriptors, threads = process.memory_info().rss, process.num_fds(), process.num_threads()
        for _ in range(5):
            await crowd()
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
