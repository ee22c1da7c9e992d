"""Three base models behind one address, two replicas each, all real processes that are really killed."""

from __future__ import annotations

import asyncio
import operator
import random
import signal
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from prompttuning.v1 import generation_pb2_grpc

from shared.store import AliasTarget, PromptStore, open_store
from tests.inference_service.replica import blob, generate_request, matrix, publish, stream_request
from tests.softprompt.router.fleet import Fleet, Running, fleet, gathered
from tests.tiny_models import save_tiny_llama
from tests.waiting import until

MODELS = ("amber", "birch", "cedar")
NEW_TOKENS = 16


@dataclass
class World:
    """Six replicas, a router, and what each prompt's replicas answer when they are asked directly."""

    fleet: Fleet
    store: PromptStore
    model_dirs: dict[str, Path]
    replicas: dict[str, list[Running]]
    router: Running
    stub: Any
    expected: dict[tuple[str, str], list[int]] = field(default_factory=dict)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    store = open_store(str(tmp_path / "store"))
    dirs = {model: save_tiny_llama(tmp_path / model, seed=seed) for seed, model in enumerate(MODELS)}
    for seed, (model, path) in enumerate(dirs.items()):
        publish(store, blob(path, matrix(seed), f"tone-{model}"), f"tone-{model}")
    for seed, model in enumerate(MODELS[:2]):  # one prompt whose versions are for two base models
        publish(store, blob(dirs[model], matrix(9 + seed), "moving"), "moving")
    store.set_alias("moving", "split", [AliasTarget(1, 50), AliasTarget(2, 50)])
    with fleet(tmp_path) as processes:
        names = [(model, number) for model in MODELS for number in (1, 2)]
        started = await gathered(*(processes.replica(f"{model}-{number}", dirs[model]) for model, number in names))
        replicas = {model: started[2 * index : 2 * index + 2] for index, model in enumerate(MODELS)}
        router = await processes.router()
        async with plain_channel(router.address) as channel:
            made = World(processes, store, dirs, replicas, router, generation_pb2_grpc.GenerationServiceStub(channel))
            await expect_answers(made)
            yield made


def plain_channel(address: str) -> Any:
    """Without retries: whatever is repeated, the router repeats."""
    return grpc.aio.insecure_channel(address, options=[("grpc.enable_retries", 0)])


async def expect_answers(world: World) -> None:
    """Ask the first replica of each base model for the answers of its prompts."""
    for index, model in enumerate(MODELS):
        async with plain_channel(world.replicas[model][0].address) as channel:
            stub: Any = generation_pb2_grpc.GenerationServiceStub(channel)
            references = [f"tone-{model}", *([f"moving@{index + 1}"] if index < 2 else [])]
            for reference in references:
                answer = await stub.Generate(generate_request("hi", reference, max_new_tokens=NEW_TOKENS))
                world.expected[reference, answer.start.version] = list(answer.output.token_ids)


async def test_kills_under_mixed_traffic_lose_no_stream_that_could_begin_elsewhere(world: World) -> None:
    outcomes, stop = Counter[str](), asyncio.Event()
    versions = {version: tokens for (_, version), tokens in world.expected.items()}
    references = [*(f"tone-{model}" for model in MODELS), "moving@split"]

    async def one(reference: str) -> str:
        stream = world.stub.GenerateStream(stream_request("hi", reference, max_new_tokens=NEW_TOKENS, ignore_eos=False))
        start, tokens = None, list[int]()
        try:
            while (part := await stream.read()) is not grpc.aio.EOF:
                start = part.start if part.HasField("start") else start
                tokens += part.delta.token_ids
        except grpc.aio.AioRpcError as error:
            return "cut" if start is not None else f"refused: {error.code().name} {error.details()}"
        assert start is not None
        return "whole" if versions[start.version] == tokens else f"wrong: {start.version} {tokens}"

    num_clients = 4
    asked = [0] * num_clients

    async def client(number: int) -> None:
        while not stop.is_set():
            outcomes[await one(random.choice(references))] += 1
            asked[number] += 1

    async def more() -> None:
        """Until every client had its stream of this moment and three others."""
        wanted = [number + 4 for number in asked]
        await until(lambda: all(map(operator.ge, asked, wanted)))

    async with asyncio.TaskGroup() as group:
        for number in range(num_clients):
            group.create_task(client(number))
        try:
            await more()
            for model in MODELS:
                world.replicas[model][0].signal(signal.SIGKILL)
                await world.replicas[model][0].ended()
                await more()
            cut_by_kills = outcomes["cut"]
            replacement = await world.fleet.replica("amber-3", world.model_dirs["amber"])
            await more()
            world.replicas["amber"][1].signal(signal.SIGTERM)
            assert await world.replicas["amber"][1].ended() == 0
            await more()
        finally:
            stop.set()
    assert set(outcomes) <= {"whole", "cut"}, outcomes
    assert cut_by_kills <= 3 * num_clients
    assert outcomes["cut"] == cut_by_kills  # SIGTERM cuts nothing
    assert replacement.process.is_alive()
