"""Measures the time between tokens of a tenant's steady streams with and without a greedy neighbour on one replica.

The neighbour is a tenant of the same weight that sends everything at once: long inputs, scores with candidates of
thousands of tokens, requests for many prompts whose keys and values exceed the prefix KV memory, and many streams.
Phases with and without the neighbour alternate, so that other load on the machine affects both.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from prompttuning.v1 import common_pb2, generation_pb2, generation_pb2_grpc

from benchmarks.load.replica import Publisher, Replica
from benchmarks.load.statistics import percentile, summary
from shared.security.tokens import hash_token, new_token

NUM_STREAMS, NUM_PROMPTS, ROUNDS = 4, 16, 3
MAX_RATIO = 2.0
SETTINGS = {"MAX_RUNNING": "16", "MAX_WAITING": "64", "PREFIX_KV_BYTES": str(2 << 20), "FLUSH_INTERVAL_SECONDS": "0"}
"""Memory for the keys and values of four of the sixteen soft prompts. Every token is sent alone, so that the time
between tokens can be measured.
"""
_STREAM_TOKENS = 400


@dataclass
class Phase:
    gaps: list[float] = field(default_factory=list)
    """Seconds between consecutive tokens of one stream."""
    first_token: list[float] = field(default_factory=list)
    codes: Counter[str] = field(default_factory=Counter)

    @property
    def figures(self) -> dict[str, Any]:
        return {
            "tokens": len(self.gaps),
            "gap_seconds": summary(self.gaps),
            "first_token_seconds": summary(self.first_token),
        }


class Tenants:
    """Writes the run's callers file and returns each tenant's metadata."""

    def __init__(self, directory: Path) -> None:
        tokens = {name: new_token() for name in ("steady", "greedy")}
        callers = [
            {"name": name, "roles": ["generator"], "token_sha256": [hash_token(token)]}
            for name, token in tokens.items()
        ]
        self.path = directory / "callers.json"
        self.path.write_text(json.dumps({"callers": callers}))
        self.metadata = {name: (("authorization", f"Bearer {token}"),) for name, token in tokens.items()}


async def neighbour(
    replica: Replica, publisher: Publisher, tenants: Tenants, seconds: float
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Figures, and the promises that did not hold."""
    prompts = [f"many-{number}" for number in range(NUM_PROMPTS)]
    for prompt in prompts:
        await asyncio.to_thread(publisher.publish, prompt)
    async with (
        grpc.aio.insecure_channel(replica.endpoint, options=[("grpc.use_local_subchannel_pool", 1)]) as steady,
        grpc.aio.insecure_channel(
            replica.endpoint, options=[("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
        ) as greedy,
    ):
        mine = generation_pb2_grpc.GenerationServiceStub(steady)
        theirs = generation_pb2_grpc.GenerationServiceStub(greedy)
        alone, beside, storm = Phase(), Phase(), Phase()
        await _streams(mine, tenants.metadata["steady"], 10.0, Phase())
        for _ in range(ROUNDS):
            await _streams(mine, tenants.metadata["steady"], seconds / ROUNDS / 2, alone)
            noise = asyncio.create_task(_greedy(theirs, tenants.metadata["greedy"], prompts, storm))
            await asyncio.sleep(3.0)  # until the neighbour fills all rows and the queue
            await _streams(mine, tenants.metadata["steady"], seconds / ROUNDS / 2, beside)
            noise.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await noise
            await asyncio.sleep(1.0)
    ratios = {
        f"p{percent}": round(percentile(beside.gaps, percent) / percentile(alone.gaps, percent), 3)
        for percent in (50, 99)
    }
    figures = {
        "streams": NUM_STREAMS,
        "alone": alone.figures,
        "beside_a_greedy_neighbour": beside.figures,
        "gap_ratio": ratios,
        "neighbour_calls": dict(storm.codes),
    }
    failures = [
        f"the {name} gap is {ratio} times as long, more than {MAX_RATIO}"
        for name, ratio in ratios.items()
        if not ratio <= MAX_RATIO
    ]
    if bad := {code: count for code, count in (alone.codes + beside.codes).items() if code != "OK"}:
        failures.append(f"steady streams ended with {bad}")
    if not storm.codes.get("OK"):
        failures.append(f"the neighbour was never served: {dict(storm.codes)}")
    return figures, tuple(failures)


async def _streams(stub: Any, metadata: Any, seconds: float, phase: Phase) -> None:
    """Runs streams one after another until the time is over; cancels the last ones."""
    end = time.monotonic() + seconds

    async def client(number: int) -> None:
        while (left := end - time.monotonic()) > 0:
            request = _request("one", f"Tell me a long story about number {number}.", _STREAM_TOKENS)
            begun, last = time.monotonic(), None
            call = stub.GenerateStream(request, metadata=metadata, timeout=left + 60)
            try:
                async for part in call:
                    now = time.monotonic()
                    if part.HasField("delta") and part.delta.token_ids:
                        if last is None:
                            phase.first_token.append(now - begun)
                        else:
                            phase.gaps += [(now - last) / len(part.delta.token_ids)] * len(part.delta.token_ids)
                        last = now
                    if now > end:
                        call.cancel()
                        return
                phase.codes["OK"] += 1
            except grpc.aio.AioRpcError as error:
                phase.codes[error.code().name] += 1
                sys.stderr.write(f"a steady stream ended: {error.details()}\n")

    await asyncio.gather(*(client(number) for number in range(NUM_STREAMS)))


async def _greedy(stub: Any, metadata: Any, prompts: list[str], phase: Phase) -> None:
    numbers = itertools.count()

    async def stream() -> None:
        async for _ in stub.GenerateStream(_request("two", f"Number {next(numbers)}.", 300), metadata=metadata):
            pass

    async def long_input() -> None:
        await stub.Generate(_whole("", f"{next(numbers)} " + "the weather is fine and " * 440, 4), metadata=metadata)

    async def long_score() -> None:
        texts = [f"{next(numbers)} " + word * 2400 for word in (" good", " bad")]
        await stub.Score(
            generation_pb2.ScoreRequest(input=_request("two", "How is it?", 1).input, candidates=texts),
            metadata=metadata,
        )

    async def many_prompts() -> None:
        await stub.Generate(
            _whole(prompts[next(numbers) % len(prompts)], f"Hello {next(numbers)}", 2), metadata=metadata
        )

    async def again(kind: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await kind()
                phase.codes["OK"] += 1
            except grpc.aio.AioRpcError as error:
                phase.codes[error.code().name] += 1
                await asyncio.sleep(0.1)

    kinds = [stream] * 16 + [long_input] * 6 + [long_score] * 3 + [many_prompts] * 16
    await asyncio.gather(*(again(kind) for kind in kinds))


def _whole(prompt: str, text: str, max_new_tokens: int) -> Any:
    request = _request(prompt, text, max_new_tokens)
    return generation_pb2.GenerateRequest(input=request.input, sampling=request.sampling)


def _request(prompt: str, text: str, max_new_tokens: int) -> Any:
    return generation_pb2.GenerateStreamRequest(
        input=generation_pb2.GenerationInput(prompt=prompt, text=text),
        sampling=common_pb2.SamplingParams(max_new_tokens=max_new_tokens, ignore_eos=True),
    )
