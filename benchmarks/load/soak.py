"""Sends mixed traffic for a long time: streams, scores, bad requests, deadlines, disconnecting clients, frequent
versions.

A replica's resources (memory, descriptors, threads, slots) must not have grown since the warm-up.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from prompttuning.v1 import common_pb2, generation_pb2, generation_pb2_grpc

from benchmarks.load.meter import Meter, memory_growth_bytes, still_held
from benchmarks.load.replica import Publisher, Replica

SETTINGS = {"MAX_LOADED_VERSIONS": "8", "PREFIX_KV_BYTES": str(32 << 20), "MAX_RUNNING": "16", "POLL_SECONDS": "0.2"}
"""Small limits, so that caches reach them during the warm-up."""

SWAP_SECONDS = 3.0
KEPT_VERSIONS = 5
_NUM_CLIENTS = 12
_SAMPLE_SECONDS = 2.0
_EXPECTED_CODES = {"OK", "CANCELLED", "DEADLINE_EXCEEDED", "INVALID_ARGUMENT", "NOT_FOUND", "RESOURCE_EXHAUSTED"}


async def soak(
    replica: Replica, publisher: Publisher, meter: Meter, seconds: float
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Figures, and the promises that did not hold."""
    end, codes = time.monotonic() + seconds, Counter[str]()
    swaps = 0
    measuring = asyncio.create_task(meter.run(_SAMPLE_SECONDS))
    async with asyncio.TaskGroup() as group:
        for number in range(_NUM_CLIENTS):
            group.create_task(_client(replica.endpoint, random.Random(number), end, codes))
        published: list[int] = []
        while time.monotonic() < end:
            published.append(await asyncio.to_thread(publisher.publish, "one"))
            swaps += 1
            if len(published) > KEPT_VERSIONS:
                await asyncio.to_thread(publisher.forget, "one", published.pop(0))
            await asyncio.sleep(SWAP_SECONDS)
    measuring.cancel()
    warm = meter.samples[len(meter.samples) // 5]
    idle = await meter.until_idle(60)
    await asyncio.sleep(2.0)  # abandoned connections close a moment later
    last = await meter.take()
    growth = memory_growth_bytes(meter.samples[:-1])
    figures = {
        "seconds": round(seconds),
        "calls": dict(codes),
        "swaps": swaps,
        "memory_warm_bytes": warm.memory_bytes,
        "memory_last_bytes": last.memory_bytes,
        "memory_growth_bytes": round(growth),
        "memory_course_mib": [
            round(sample.memory_bytes / 2**20) for sample in meter.samples[:: max(1, len(meter.samples) // 40)]
        ],
        "descriptors_warm_and_last": [warm.descriptors, last.descriptors],
        "threads_warm_and_last": [warm.threads, last.threads],
        "idle_gauges": idle.gauges,
        "versions_loaded_last": last.gauges.get("versions_loaded"),
    }
    failures = still_held(warm, last, growth)
    if last.gauges.get("kv_usage"):
        failures.append(f"requests are gone and hold {last.gauges['kv_usage']:.1%} of the KV cache")
    if odd := codes.keys() - _EXPECTED_CODES:
        failures.append(f"calls ended with {sorted(odd)}")
    return figures, tuple(failures)


async def _client(endpoint: str, dice: random.Random, end: float, codes: Counter[str]) -> None:
    """Runs clients one after another, each with its own connection and a few calls."""
    kinds: tuple[Callable[[Any, random.Random], Awaitable[None]], ...] = (
        _whole_stream,
        _whole_stream,
        _abandoned_stream,
        _short_deadline,
        _score,
        _bad_request,
        _unknown_prompt,
    )
    while time.monotonic() < end:
        channel = grpc.aio.insecure_channel(
            endpoint, options=[("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
        )
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        for _ in range(dice.randint(1, 6)):
            try:
                await dice.choice(kinds)(stub, dice)
                codes["OK"] += 1
            except grpc.aio.AioRpcError as error:
                codes[error.code().name] += 1
        if dice.random() < 0.3:  # disconnect in the middle of an answer
            call = stub.GenerateStream(_request(dice, 64))
            with contextlib.suppress(grpc.aio.AioRpcError):
                await call.read()
            codes["CANCELLED"] += 1
        await channel.close(None)


def _request(dice: random.Random, max_new_tokens: int) -> Any:
    prompt = dice.choice(["one", "one", "two", "one@default", ""])
    text = "Tell me something about the weather. " * dice.randint(1, 8)
    sampling = common_pb2.SamplingParams(
        max_new_tokens=max_new_tokens, temperature=dice.choice([0.0, 0.8]), ignore_eos=True
    )
    return generation_pb2.GenerateStreamRequest(
        input=generation_pb2.GenerationInput(prompt=prompt, text=text), sampling=sampling
    )


async def _whole_stream(stub: Any, dice: random.Random) -> None:
    async for _ in stub.GenerateStream(_request(dice, dice.randint(1, 32)), timeout=60):
        pass


async def _abandoned_stream(stub: Any, dice: random.Random) -> None:
    call = stub.GenerateStream(_request(dice, 64), timeout=60)
    await call.read()
    call.cancel()


async def _short_deadline(stub: Any, dice: random.Random) -> None:
    async for _ in stub.GenerateStream(_request(dice, 64), timeout=dice.uniform(0.01, 0.5)):
        pass


async def _score(stub: Any, dice: random.Random) -> None:
    await stub.Score(
        generation_pb2.ScoreRequest(input=_request(dice, 1).input, candidates=["good", "bad", "so so"]), timeout=60
    )


async def _bad_request(stub: Any, dice: random.Random) -> None:
    await stub.GenerateStream(
        generation_pb2.GenerateStreamRequest(sampling=common_pb2.SamplingParams(top_p=7.0))
    ).read()


async def _unknown_prompt(stub: Any, dice: random.Random) -> None:
    await stub.CountTokens(
        generation_pb2.CountTokensRequest(input=generation_pb2.GenerationInput(prompt="nobody", text="x"))
    )
