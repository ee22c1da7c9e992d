"""Throughput through the router, compared with calls of the replica itself.

    python -m benchmarks.router --model DIR [--rounds 16] [--tokens 64]

One replica, the router and the callers are separate processes of one machine, and share its cores. In each round, N
streams are answered directly and N through the router; the order alternates, so that both see the same machine. The
ratio is the median of the rounds' ratios. Writes benchmarks/results/router.json; exits with 1 if a ratio is below
LEAST_RATIO.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import grpc
from prompttuning.v1 import common_pb2, generation_pb2, generation_pb2_grpc

from benchmarks.load.replica import running_replica
from benchmarks.machine import machine
from softprompt.local.process import ServiceProcess

RESULTS = Path(__file__).parent / "results" / "router.json"
LEAST_RATIO = 0.95
STREAMS = (16, 64)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="a model directory")
    parser.add_argument("--rounds", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64, help="length of an answer")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    figures = asyncio.run(measure(arguments.model, arguments.rounds, arguments.tokens))
    results = {"machine": machine(), "model": arguments.model.name, **figures}
    arguments.output.write_text(json.dumps(results, indent=2) + "\n")
    sys.stdout.write(json.dumps(results, indent=2) + "\n")
    return 0 if all(case["ratio"] >= LEAST_RATIO for case in figures["streams"].values()) else 1


async def measure(model: Path, rounds: int, tokens: int) -> dict[str, Any]:
    """By number of streams: tokens per second each way, and the ratio."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as directory:
        settings = {"MAX_RUNNING": str(max(STREAMS)), "MAX_WAITING": str(max(STREAMS))}
        async with running_replica(model, Path(directory), settings) as (replica, _):
            ready_file = Path(directory) / "router.json"
            environment = {
                "SOFTPROMPT_ROUTER_STORE_URL": f"{directory}/store",
                "SOFTPROMPT_ROUTER_READY_FILE": str(ready_file),
                "SOFTPROMPT_ROUTER_PORT": "0",
                "SOFTPROMPT_ROUTER_LOG_LEVEL": "WARNING",
            }
            router = ServiceProcess("router", "softprompt.router", environment, ready_file, _say)
            await router.start()
            try:
                ready = await router.ready(180.0)
                ways = {"direct": replica.endpoint, "router": f"127.0.0.1:{ready.port}"}
                for count in STREAMS:
                    found[str(count)] = await compare(ways, count, rounds, tokens)
            finally:
                router.terminate()
                await router.wait(30)
    return {"rounds": rounds, "tokens": tokens, "streams": found}


async def compare(ways: dict[str, str], count: int, rounds: int, tokens: int) -> dict[str, float]:
    rates: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(rounds + 1):
        order = list(ways.items())
        for way, address in order if number % 2 else reversed(order):
            rate = await throughput(address, count, tokens)
            if number:  # the first round warms up
                rates[way].append(rate)
    pairs = zip(rates["router"], rates["direct"], strict=True)
    return {
        **{f"{way}_tokens_per_second": round(statistics.median(found), 1) for way, found in rates.items()},
        "ratio": round(statistics.median(router / direct for router, direct in pairs), 3),
    }


async def throughput(address: str, count: int, tokens: int) -> float:
    """Tokens per second of `count` streams at once."""
    request = generation_pb2.GenerateStreamRequest(
        input=generation_pb2.GenerationInput(prompt="one", text="Describe the product: a lamp"),
        sampling=common_pb2.SamplingParams(max_new_tokens=tokens, ignore_eos=True),
    )
    async with grpc.aio.insecure_channel(address) as channel:
        stub: Any = generation_pb2_grpc.GenerationServiceStub(channel)
        begun = time.perf_counter()
        totals = await asyncio.gather(*(one(stub, request) for _ in range(count)))
        return sum(totals) / (time.perf_counter() - begun)


async def one(stub: Any, request: generation_pb2.GenerateStreamRequest) -> int:
    return sum([len(part.delta.token_ids) async for part in stub.GenerateStream(request)])


def _say(name: str, line: str) -> None:
    sys.stderr.write(f"{name}: {line}\n")


if __name__ == "__main__":
    sys.exit(main())
