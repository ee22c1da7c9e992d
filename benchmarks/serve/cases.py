"""The named cases: the measurements of a round, and the target ratios."""

from __future__ import annotations

import asyncio
import itertools
import statistics
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from benchmarks.serve.busy_cores import busy_cores
from benchmarks.serve.field import Field
from benchmarks.serve.workload import NUM_INPUT, Workload
from shared.values.guide import Guide

TTFT_PAIRS = 9
MANY_REQUESTS = 64
Note = Callable[[str, float], None]


@dataclass(frozen=True)
class Goal:
    """The ratio of `figure` to `beside`, or the figure itself; reached if it is at least (or at most) `value`."""

    name: str
    figure: str
    beside: str | None
    value: float
    at_most: bool = False


@dataclass(frozen=True)
class Case:
    name: str
    about: str
    round: Callable[[Field, Note], Awaitable[None]]
    goals: tuple[Goal, ...]


def _throughput(count: int) -> Callable[[Field, Note], Awaitable[None]]:
    async def measure(field: Field, note: Note) -> None:
        engine = await field.engine()
        note("engine, tokens/s", await engine.tokens_per_second(field.workload, "few-", count))
        for name, peer in (await field.peers()).items():
            note(f"{name}, tokens/s", peer.tokens_per_second(count))
        if count == 16:
            note("transformers, tokens/s", (await field.transformers()).tokens_per_second(count))

    return measure


async def _ttft(field: Field, note: Note) -> None:
    """Measures each contestant's pairs separately and alternates the order within a pair, because the second contestant
    starts with cold caches.
    """
    engine, peers = await field.engine(), await field.peers()
    for pair in range(-1, TTFT_PAIRS):  # the first round is a warm-up
        for virtual in (pair % 2 == 0, pair % 2 != 0):
            prompt, name = ("few-0", "with a soft prompt") if virtual else (None, "without")
            seconds = await engine.first_token_seconds(field.workload.inputs[pair], prompt)
            if pair >= 0:
                note(f"engine {name}, s", seconds)
    for (name, peer), pair in itertools.product(peers.items(), range(-1, TTFT_PAIRS)):
        for virtual in (pair % 2 == 0, pair % 2 != 0):
            seconds = peer.first_token_seconds(virtual=virtual)
            if pair >= 0:
                note(f"{name} {'with a soft prompt' if virtual else 'without'}, s", seconds)


async def _grpc(field: Field, note: Note) -> None:
    """Uses new inputs in every round, because the service would reuse the text prefixes of earlier rounds."""
    engine, replica = await field.engine(), await field.replica()
    seed = field.next_seed()
    fresh = Workload(field.workload.prompts, Workload.make(engine.table, 16, 1, seed=seed).inputs)
    note("engine alone, tokens/s", await engine.tokens_per_second(fresh, "few-", 16))
    note("gRPC streaming, tokens/s", await replica.tokens_per_second(fresh, 16))


async def _publish(field: Field, note: Note) -> None:
    engine, replica = await field.engine(), await field.replica()
    seed = field.next_seed()
    fresh = Workload.make(engine.table, 5, 1, seed=seed)
    blob = await replica.blob(
        f"fresh-{seed}", fresh.prompts[0], await engine.golden(fresh.prompts[0], fresh.inputs[:4])
    )
    note(
        "publish to first streamed token, s",
        await replica.publish_to_first_token_seconds(f"fresh-{seed}", blob, fresh.inputs[4]),
    )


async def _many(field: Field, note: Note) -> None:
    engine, many = await field.engine(), await field.many()
    note("over few prompts, tokens/s", await engine.tokens_per_second(field.workload, "few-", MANY_REQUESTS))
    note("over many prompts, tokens/s", await engine.tokens_per_second(many, "many-", MANY_REQUESTS))


PEOPLE = Guide(
    json_schema={
        "type": "array",
        "minItems": 100,
        "items": {
            "type": "object",
            "properties": {
                "name": {"type": "string", "maxLength": 20},
                "age": {"type": "integer", "minimum": 0, "maximum": 120},
                "tags": {"type": "array", "items": {"enum": ["a", "b", "c"]}, "minItems": 1, "maxItems": 3},
            },
            "required": ["name", "age", "tags"],
            "additionalProperties": False,
        },
    }
)
"""Longer than every answer, so that guided answers have as many tokens as free ones."""
LONG_INPUT = 400


async def _guided(field: Field, note: Note) -> None:
    """Alternates guided and free rounds; the last one mixes both in one batch."""
    engine = await field.engine()
    note("compile a guide, s", await engine.compile_seconds(PEOPLE))
    note("free, tokens/s", await engine.tokens_per_second(field.workload, "few-", 16))
    note("guided, tokens/s", await engine.tokens_per_second(field.workload, "few-", 16, PEOPLE))
    free, guided = await asyncio.gather(
        engine.tokens_per_second(field.workload, "few-", 8),
        engine.tokens_per_second(field.workload, "few-", 8, PEOPLE),
    )
    note("mixed, tokens/s", free + guided)


async def _completions(field: Field, note: Note) -> None:
    engine = await field.engine()
    workload = Workload.make(engine.table, LONG_INPUT // NUM_INPUT, 1, seed=field.next_seed())
    long = tuple(token for ids in workload.inputs for token in ids)
    note("one request with n = 4, s", await engine.completions_seconds(long, share=True))
    note("four requests, s", await engine.completions_seconds(long, share=False))


ARRIVALS_PER_SECOND = 2.0
NUM_ARRIVALS = 32


def _sampled(**sampling: float) -> Callable[[Field, Note], Awaitable[None]]:
    """16 requests, sampled and greedy."""

    async def measure(field: Field, note: Note) -> None:
        engine = await field.engine()
        note("engine, greedy, tokens/s", await engine.tokens_per_second(field.workload, "few-", 16))
        note("engine, tokens/s", await engine.tokens_per_second(field.workload, "few-", 16, sampling=sampling))
        vllm = await field.vllm()
        if vllm is not None:
            note("vllm, tokens/s", vllm.tokens_per_second(16, sampling=sampling))
        note("transformers, tokens/s", (await field.transformers()).tokens_per_second(16, sampling=sampling))

    return measure


def _long(num_input: int, count: int) -> Callable[[Field, Note], Awaitable[None]]:
    """Inputs of `num_input` tokens, new ones in each round."""

    async def measure(field: Field, note: Note) -> None:
        engine = await field.engine()
        many = Workload.make(engine.table, count * -(-num_input // NUM_INPUT), 1, seed=field.next_seed()).inputs
        tokens = [token for ids in many for token in ids]
        inputs = [tuple(tokens[i * num_input : (i + 1) * num_input]) for i in range(count)]
        long = Workload(field.workload.prompts, inputs)
        note("engine, tokens/s", await engine.tokens_per_second(long, "few-", count))
        for name, peer in (await field.peers()).items():
            note(f"{name}, tokens/s", peer.tokens_per_second(count, inputs))
        note("transformers, tokens/s", (await field.transformers()).tokens_per_second(count, inputs))

    return measure


async def _arrivals(field: Field, note: Note) -> None:
    engine = await field.engine()
    some = Workload(field.workload.prompts, field.workload.inputs[:NUM_ARRIVALS])
    first, rate = await engine.arrivals(some, ARRIVALS_PER_SECOND)
    note("first token, median, s", statistics.median(first))
    note("first token, 95th percentile, s", statistics.quantiles(first, n=20)[-1])
    note("arriving over time, tokens/s", rate)


async def _neighbours(field: Field, note: Note) -> None:
    """With one busy process on each core, half of the processor is a fair share."""
    engine = await field.engine()
    for count in (1, 16):
        alone = await engine.tokens_per_second(field.workload, "few-", count)
        with busy_cores():
            beside = await engine.tokens_per_second(field.workload, "few-", count)
        note(f"{count} alone, tokens/s", alone)
        note(f"{count} beside busy processes, tokens/s", beside)
        note(f"{count}: time over that of a fair share", alone / beside / 2)


_OVER_VLLM = "engine over vLLM"
_OVER_LLAMA = "engine over llama.cpp"
_OVER_OPENVINO = Goal("engine over OpenVINO", "engine, tokens/s", "OpenVINO, tokens/s", 1.0)
_OVER_GREEDY = Goal("sampled over greedy", "engine, tokens/s", "engine, greedy, tokens/s", 0.95)
_OVER_PEERS = (
    Goal(_OVER_VLLM, "engine, tokens/s", "vllm, tokens/s", 2.5),
    Goal(_OVER_LLAMA, "engine, tokens/s", "llama.cpp, tokens/s", 2.5),
    _OVER_OPENVINO,
    Goal("engine over transformers' generate", "engine, tokens/s", "transformers, tokens/s", 2.5),
)
CASES = (
    Case(
        "batch-1",
        "one request",
        _throughput(1),
        (
            Goal(_OVER_VLLM, "engine, tokens/s", "vllm, tokens/s", 1.5),
            Goal(_OVER_LLAMA, "engine, tokens/s", "llama.cpp, tokens/s", 1.0),
            _OVER_OPENVINO,
        ),
    ),
    Case(
        "batch-16",
        "16 requests at once",
        _throughput(16),
        _OVER_PEERS,
    ),
    Case(
        "batch-32",
        "32 requests at once",
        _throughput(32),
        _OVER_PEERS,
    ),
    Case(
        "ttft",
        "time to first token with a 100-token soft prompt and without",
        _ttft,
        (Goal("with over without", "engine with a soft prompt, s", "engine without, s", 1.05, at_most=True),),
    ),
    Case(
        "grpc",
        "16 requests through gRPC streaming, to a server process",
        _grpc,
        (Goal("gRPC over the engine alone", "gRPC streaming, tokens/s", "engine alone, tokens/s", 0.85),),
    ),
    Case(
        "publish",
        "from a version's publish to its first streamed token, local store, golden replay included",
        _publish,
        (Goal("seconds", "publish to first streamed token, s", None, 0.5, at_most=True),),
    ),
    Case(
        "many-prompts",
        f"{MANY_REQUESTS} requests over all prompts loaded, over 8 prompts loaded",
        _many,
        (Goal("many over few", "over many prompts, tokens/s", "over few prompts, tokens/s", 0.9),),
    ),
    Case(
        "guided",
        "16 requests at once under a JSON Schema, and 16 free ones",
        _guided,
        (Goal("guided over free", "guided, tokens/s", "free, tokens/s", 0.9),),
    ),
    Case(
        "completions",
        f"four completions of an input of {LONG_INPUT} tokens, as one request and as four that don't reuse text",
        _completions,
        (Goal("one request over four", "one request with n = 4, s", "four requests, s", 0.8, at_most=True),),
    ),
    Case(
        "sampled",
        "16 requests at once, temperature 0.8, top_p 0.95",
        _sampled(temperature=0.8, top_p=0.95),
        (_OVER_GREEDY, *_OVER_PEERS),
    ),
    Case(
        "penalised",
        "16 requests at once, temperature 0.8, repetition penalty 1.1",
        _sampled(temperature=0.8, repetition_penalty=1.1),
        (_OVER_GREEDY, *_OVER_PEERS),
    ),
    Case(
        "input-512",
        "16 requests at once with inputs of 512 tokens",
        _long(512, 16),
        _OVER_PEERS,
    ),
    Case(
        "input-2048",
        "4 requests at once with inputs of 2,048 tokens",
        _long(2048, 4),
        _OVER_PEERS,
    ),
    Case(
        "arrivals",
        f"{NUM_ARRIVALS} requests that arrive over time (Poisson, {ARRIVALS_PER_SECOND:g} a second)",
        _arrivals,
        (),
    ),
    Case(
        "neighbours",
        "1 and 16 requests, alone and beside one busy process on each core",
        _neighbours,
        (
            Goal("1 request", "1: time over that of a fair share", None, 1.3, at_most=True),
            Goal("16 requests", "16: time over that of a fair share", None, 1.3, at_most=True),
        ),
    ),
)
