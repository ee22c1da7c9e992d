"""A replica whose prompt store takes requests and answers none: it serves what it has, refuses the rest in time, and catches up later."""

from __future__ import annotations

import asyncio
import secrets
import time
from pathlib import Path

from shared.errors import Unavailable
from tests.inference_service.replica import blob, matrix, publish, refusal, running_replica, until
from tests.shared.store.conftest import BUCKET, s3_endpoint
from tests.tcp_proxy import TcpProxy
from tests.trainer_service.test_systems_that_hang import store_proxy

__all__ = ["s3_endpoint", "store_proxy"]


async def test_a_replica_serves_on_while_its_store_hangs(store_proxy: TcpProxy, tiny_model_dir: Path, tmp_path: Path) -> None:
    store_url = f"s3://{BUCKET}/serve_{secrets.token_hex(4)}"
    async with running_replica(tiny_model_dir, tmp_path, store_url=store_url, store_timeout_seconds=0.5) as replica:

        async def published(seed: int, alias: str | None) -> str:
            return (await asyncio.to_thread(publish, replica.store, blob(tiny_model_dir, matrix(seed)), alias=alias)).name

        served, unused = await published(1, "default"), await published(2, None)
        await replica.state(served, "LOADED")
        await replica.state(unused, "KNOWN")
        store_proxy.hang()
        contact = await replica.metric("store_last_contact_timestamp_seconds")
        begun = time.monotonic()
        while await replica.metric("store_last_contact_timestamp_seconds") > contact - 1 and time.monotonic() - begun < 2:
            answers = await asyncio.gather(*(replica.generate(f"text {n}", "tone") for n in range(10)))
            assert {answer.start.version for answer in answers} == {served}
        begun = time.monotonic()
        refused = await asyncio.gather(*(refusal(replica.generate("hello", "tone@2")) for _ in range(8)), replica.served_version())
        assert {type(error) for error in refused[:-1]} == {Unavailable}
        assert refused[-1] == served
        assert time.monotonic() - begun < 10
        store_proxy.resume()
        newest = await published(3, "default")
        await replica.state(newest, "LOADED")
        assert await replica.served_version() == newest

        async def answers_again() -> bool:
            return (await replica.generate("hello", "tone@2")).start.version == unused

        await until(answers_again)
