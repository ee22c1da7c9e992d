"""Replicas restarted one after the other, behind the client's own load balancing: no stream is lost."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from shared.store import open_store
from shared.values.sampling import Sampling
from softprompt.client.async_client import AsyncClient
from tests.inference_service.replica import blob, matrix, publish
from tests.inference_service.test_process import environment, is_ready, process
from tests.ports import free_port
from tests.waiting import until

NUM_CLIENTS = 4
NEW_TOKENS = 40


async def started(stack: AsyncExitStack, model_dir: Path, directory: Path, name: str, port: int) -> Any:
    """A replica that serves."""
    ready_file = directory / f"{name}.json"
    ready_file.unlink(missing_ok=True)
    env = environment(
        model_dir, directory, READY_FILE=str(ready_file), PORT=str(port), GRACE_SECONDS="600", LOG_LEVEL="ERROR"
    )
    running = await stack.enter_async_context(process(env))
    await until(lambda: is_ready(running, ready_file))
    return running


async def ended(running: Any) -> None:
    """Sends SIGTERM, and waits until the process has drained."""
    running.send_signal(signal.SIGTERM)
    await running.wait()
    assert running.returncode == 0


async def some_more(outcomes: Counter[str]) -> None:
    """Until every client had another stream or two."""
    wanted = outcomes["whole"] + 2 * NUM_CLIENTS
    while outcomes["whole"] < wanted:
        await asyncio.sleep(0.01)


async def test_a_rolling_restart_loses_no_stream(tiny_model_dir: Path, tmp_path: Path) -> None:
    publish(open_store(str(tmp_path / "store")), blob(tiny_model_dir, matrix(1)))
    outcomes, stop = Counter[str](), asyncio.Event()

    async def client(client: AsyncClient, number: int) -> None:
        sampling = Sampling(max_new_tokens=NEW_TOKENS, ignore_eos=True)
        while not stop.is_set():
            await asyncio.sleep(0.05)  # leaves the processes room to start
            stream = client.stream(f"hello {number}", prompt="tone", sampling=sampling)
            async for _ in stream:
                pass
            outcomes["whole" if stream.end is not None and stream.end.output_tokens == NEW_TOKENS else "cut"] += 1

    async with AsyncExitStack() as stack:
        ports = {"first": free_port(), "second": free_port()}
        first, second = await asyncio.gather(
            *(started(stack, tiny_model_dir, tmp_path, name, port) for name, port in ports.items())
        )
        endpoint = f"ipv4:127.0.0.1:{ports['first']},127.0.0.1:{ports['second']}"
        balanced = await stack.enter_async_context(AsyncClient(inference=endpoint))
        async with asyncio.TaskGroup() as group:  # any error of a client ends the test
            for number in range(NUM_CLIENTS):
                group.create_task(client(balanced, number))
            await some_more(outcomes)
            await ended(first)
            await some_more(outcomes)
            await started(stack, tiny_model_dir, tmp_path, "first", ports["first"])
            await some_more(outcomes)
            await ended(second)
            await some_more(outcomes)
            stop.set()
    assert outcomes["cut"] == 0
