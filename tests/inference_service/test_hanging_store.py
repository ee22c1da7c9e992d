"""A replica whose prompt store takes requests and answers none: it serves what it has, and catches up later."""

from __future__ import annotations

import asyncio
import secrets
from pathlib import Path

from shared.errors import NotFound
from tests.inference_service.replica import blob, matrix, publish, refusal, running_replica
from tests.s3_server import BUCKET
from tests.shared.store.conftest import s3_endpoint, s3_environment
from tests.tcp_proxy import TcpProxy
from tests.trainer_service.test_systems_that_hang import store_proxy

__all__ = ["s3_endpoint", "s3_environment", "store_proxy"]


async def test_a_replica_serves_on_while_its_store_hangs(
    store_proxy: TcpProxy, tiny_model_dir: Path, tmp_path: Path
) -> None:
    store_url = f"s3://{BUCKET}/serve_{secrets.token_hex(4)}"
    async with running_replica(tiny_model_dir, tmp_path, store_url=store_url, store_timeout_seconds=0.5) as replica:

        async def published(seed: int) -> str:
            return (await asyncio.to_thread(publish, replica.store, blob(tiny_model_dir, matrix(seed)))).name

        async def timed_out() -> float:
            return await replica.sample("softprompt_outside_calls_timed_out_total", system="prompt_store_watch")

        served = await published(1)
        await replica.state(served, "LOADED")
        contact = await replica.metric("store_last_contact_timestamp_seconds")
        store_proxy.hang()
        num_hung = 0.0
        while num_hung < 3:  # calls to the store that ran into their time limit
            answers = await asyncio.gather(*(replica.generate(f"text {n}", "tone") for n in range(10)))
            assert {answer.start.version for answer in answers} == {served}
            assert isinstance(await refusal(replica.generate("hello", "tone@7")), NotFound)
            num_hung = await timed_out()
        store_proxy.resume()
        newest = await published(2)
        await replica.state(newest, "LOADED")
        assert await replica.served_version() == newest
        assert await replica.metric("store_last_contact_timestamp_seconds") > contact
