"""Sends a replica five times its capacity for two minutes. Accepted requests must be served in time, others refused at
once.

The capacity is measured first, with as many concurrent streams as the engine can run, each followed by the next. Then
requests arrive at five times that rate, independently of earlier ones. An accepted request may wait at most for a full
queue (the queue's limit divided by the capacity).
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import grpc
from prompttuning.v1 import common_pb2, generation_pb2, generation_pb2_grpc

from benchmarks.load.meter import Meter, memory_growth_bytes, still_held
from benchmarks.load.statistics import percentile, summary
from shared.errors import Overloaded
from shared.rpc.errors import error_from_rpc
from tests.retry_info import retry_delay_seconds

NEW_TOKENS = 32
_DEADLINE_SECONDS = 120.0
_SAMPLE_SECONDS = 1.0


@dataclass
class Outcomes:
    """Seconds from sending a request to its first token and its end, or to its refusal."""

    first_token: list[float] = field(default_factory=list)
    total: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    codes: Counter[str] = field(default_factory=Counter)
    without_delay: int = 0
    """Refusals without a retry delay."""


@dataclass(frozen=True)
class OverloadResult:
    """`queue_seconds`: the longest expected queue time. `failures`: descriptions of promises that did not hold."""

    figures: dict[str, Any]
    failures: tuple[str, ...]


async def overload(
    endpoint: str,
    meter: Meter,
    *,
    at_once: int,
    max_waiting: int,
    calibrate_seconds: float,
    seconds: float,
    factor: float,
) -> OverloadResult:
    async with grpc.aio.insecure_channel(endpoint, options=[("grpc.enable_retries", 0)]) as channel:
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        calm = await _saturate(stub, at_once, calibrate_seconds)
        capacity = len(calm.total) / calibrate_seconds
        sys.stderr.write(f"capacity: {capacity:.2f} requests a second\n")
        await meter.until_idle(_DEADLINE_SECONDS)
        before = await meter.take()
        measuring = asyncio.create_task(meter.run(_SAMPLE_SECONDS))
        stormy = await _storm(stub, factor * capacity, seconds)
        measuring.cancel()
        after = await meter.until_idle(_DEADLINE_SECONDS)
    queue_seconds = max_waiting / capacity
    served_per_second = len(stormy.total) / seconds
    figures = {
        "capacity_per_second": round(capacity, 2),
        "offered_per_second": round(factor * capacity, 2),
        "served_per_second": round(served_per_second, 2),
        "calm_first_token_seconds": summary(calm.first_token),
        "calm_total_seconds": summary(calm.total),
        "accepted_first_token_seconds": summary(stormy.first_token),
        "accepted_total_seconds": summary(stormy.total),
        "queue_bound_seconds": round(queue_seconds, 3),
        "refused_seconds": summary(stormy.refused),
        "codes": dict(stormy.codes),
        "memory_before_bytes": before.memory_bytes,
        "memory_after_bytes": after.memory_bytes,
        "memory_growth_bytes": round(memory_growth_bytes(meter.samples)),
        "descriptors": [before.descriptors, after.descriptors],
        "threads": [before.threads, after.threads],
    }
    failures = _failures(calm, stormy, queue_seconds, served_per_second, capacity)
    return OverloadResult(figures, (*failures, *still_held(before, after, memory_growth_bytes(meter.samples))))


def _failures(calm: Outcomes, stormy: Outcomes, queue_seconds: float, served: float, capacity: float) -> list[str]:
    failures = []
    bound = 1.5 * (percentile(calm.total, 95) + queue_seconds) + 0.5
    if not percentile(stormy.total, 95) <= bound:
        failures.append(f"accepted requests took {percentile(stormy.total, 95):.2f} s (p95), more than {bound:.2f} s")
    if stormy.codes.keys() - {"OK", "RESOURCE_EXHAUSTED"}:
        failures.append(f"some ended neither served nor refused: {dict(stormy.codes)}")
    if not stormy.refused or percentile(stormy.refused, 99) > 1.0:
        failures.append(f"refusals took {percentile(stormy.refused, 99):.2f} s (p99), more than 1 s")
    if stormy.without_delay:
        failures.append(f"{stormy.without_delay} refusals did not say when to come back")
    if served < 0.6 * capacity:
        failures.append(f"only {served:.1f} of {capacity:.1f} requests a second were served")
    return failures


async def _saturate(stub: Any, at_once: int, seconds: float) -> Outcomes:
    """Closed loop: each stream starts when the previous one ends."""
    outcomes, end = Outcomes(), time.monotonic() + seconds

    async def client(number: int) -> None:
        while time.monotonic() < end:
            await _ask(stub, number, outcomes)

    await asyncio.gather(*(client(number) for number in range(at_once)))
    return outcomes


async def _storm(stub: Any, per_second: float, seconds: float) -> Outcomes:
    """Open loop: requests are sent on schedule, independently of earlier ones."""
    outcomes, begun, number = Outcomes(), time.monotonic(), 0
    async with asyncio.TaskGroup() as group:
        while (now := time.monotonic() - begun) < seconds:
            while number <= now * per_second:
                group.create_task(_ask(stub, number, outcomes))
                number += 1
            await asyncio.sleep(min(0.01, 1 / per_second))
    return outcomes


async def _ask(stub: Any, number: int, outcomes: Outcomes) -> None:
    request = generation_pb2.GenerateStreamRequest(
        input=generation_pb2.GenerationInput(prompt=("one", "two")[number % 2], text=f"Write about number {number}."),
        sampling=common_pb2.SamplingParams(max_new_tokens=NEW_TOKENS, ignore_eos=True),
    )
    begun = time.monotonic()
    first: float | None = None
    try:
        async for response in stub.GenerateStream(request, timeout=_DEADLINE_SECONDS):
            if first is None and response.HasField("delta"):
                first = time.monotonic() - begun
    except grpc.aio.AioRpcError as error:
        outcomes.codes[error.code().name] += 1
        found = error_from_rpc(error)
        if isinstance(found, Overloaded):
            outcomes.refused.append(time.monotonic() - begun)
            outcomes.without_delay += not retry_delay_seconds(error)
        return
    outcomes.codes["OK"] += 1
    outcomes.first_token.append(first or 0.0)
    outcomes.total.append(time.monotonic() - begun)
