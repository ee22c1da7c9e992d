"""Replicas restarted one after the other, behind the client's own load balancing: no stream is lost."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from pathlib import Path

from shared.store import open_store
from shared.values.sampling import Sampling
from softprompt.client.async_client import AsyncClient
from tests.inference_service.replica import blob, matrix, publish
from tests.ports import free_port
from tests.softprompt.router.fleet import Running, fleet, gathered

NUM_CLIENTS = 4
NEW_TOKENS = 40


async def ended(running: Running) -> None:
    """Sends SIGTERM, and waits until the process has drained."""
    running.signal(signal.SIGTERM)
    assert await running.ended() == 0


async def some_more(outcomes: Counter[str]) -> None:
    """Until every client had another stream or two."""
    wanted = outcomes["whole"] + 2 * NUM_CLIENTS
    while outcomes["whole"] < wanted:
        await asyncio.sleep(0.01)


async def test_a_rolling_restart_loses_no_stream(tiny_model_dir: Path, tmp_path: Path) -> None:
    outcomes, stop = Counter[str](), asyncio.Event()

    async def client(client: AsyncClient, number: int) -> None:
        sampling = Sampling(max_new_tokens=NEW_TOKENS, ignore_eos=True)
        while not stop.is_set():
            await asyncio.sleep(0.05)  # leaves the processes room to start
            stream = client.stream(f"hello {number}", prompt="tone", sampling=sampling)
            async for _ in stream:
                pass
            outcomes["whole" if stream.end is not None and stream.end.output_tokens == NEW_TOKENS else "cut"] += 1

    with fleet(tmp_path) as processes:
        publish(open_store(str(processes.store_dir)), blob(tiny_model_dir, matrix(1)))
        ports = {name: str(free_port()) for name in ("first", "second")}
        first, second = await gathered(
            *(processes.replica(name, tiny_model_dir, PORT=port) for name, port in ports.items())
        )
        endpoint = f"ipv4:{first.address},{second.address}"
        # any error of a client ends the test
        async with AsyncClient(inference=endpoint) as balanced, asyncio.TaskGroup() as group:
            for number in range(NUM_CLIENTS):
                group.create_task(client(balanced, number))
            await some_more(outcomes)
            await ended(first)
            await some_more(outcomes)
            await processes.replica("first", tiny_model_dir, PORT=ports["first"])
            await some_more(outcomes)
            await ended(second)
            await some_more(outcomes)
            stop.set()
    assert outcomes["cut"] == 0
