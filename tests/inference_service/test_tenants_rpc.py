"""Tenants at the door: a request's priority is capped, and a neighbour that fills the engine stops no other's
stream.
"""

from __future__ import annotations

import asyncio
import json
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from prompttuning.v1 import generation_pb2

from inference_service.config import InferenceSettings
from shared.errors import InvalidInput, Overloaded
from shared.security.tokens import hash_token, new_token
from tests.inference_service.conftest import Brake
from tests.inference_service.replica import (
    Replica,
    blob,
    generate_request,
    matrix,
    publish,
    refusal,
    running_replica,
    stream_request,
)
from tests.waiting import until

MODEST, GREEDY, MEEK = new_token(), new_token(), new_token()


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),)


@pytest.fixture
async def replica(tiny_model_dir: Path, tmp_path: Path) -> AsyncIterator[Replica]:
    tenants = [{"name": "modest", "max_priority": 5}, {"name": "greedy"}, {"name": "meek", "max_priority": -1}]
    callers = [
        {"name": f"{tenant}-caller", "tenant": tenant, "roles": ["generator"], "token_sha256": [hash_token(token)]}
        for tenant, token in (("modest", MODEST), ("greedy", GREEDY), ("meek", MEEK))
    ]
    path = tmp_path / "callers.json"
    path.write_text(json.dumps({"tenants": tenants, "callers": callers}))
    async with running_replica(
        tiny_model_dir, tmp_path, callers_file=str(path), max_running=2, max_waiting=4, max_tokens_per_step=8
    ) as running:
        yield running


async def test_a_priority_above_the_tenants_largest_is_named(replica: Replica) -> None:
    request = generate_request(max_new_tokens=1)
    request.priority = 6
    error = await refusal(replica.stub.Generate(request, metadata=bearer(MODEST)))
    assert isinstance(error, InvalidInput)
    assert [(item.field, item.description) for item in error.violations] == [
        ("priority", "must be at most 5 for modest, is 6")
    ]
    request.priority = 5
    await replica.stub.Generate(request, metadata=bearer(MODEST))
    request.priority = 0
    await replica.stub.Generate(request, metadata=bearer(MEEK))


async def test_a_neighbour_that_fills_rows_and_queue_locks_no_tenant_out(replica: Replica, brake: Brake) -> None:
    brake.holds = True

    async def greedy() -> str:
        call = replica.stub.Generate(
            generate_request("x" * 60, max_new_tokens=150, ignore_eos=True), metadata=bearer(GREEDY)
        )
        try:
            await call
        except Exception:
            return "refused"
        return "served"

    calls = [asyncio.create_task(greedy()) for _ in range(12)]

    async def is_full() -> bool:  # a call that came while the queue was full, and before the rows were, was refused
        calls.append(asyncio.create_task(greedy()))
        return (await replica.metric("requests_running"), await replica.metric("requests_waiting")) == (2, 4)

    await until(is_full)
    error = await refusal(replica.stub.Generate(generate_request(max_new_tokens=1), metadata=bearer(GREEDY)))
    assert isinstance(error, Overloaded)
    assert "of your tenant" in error.message
    candidates = ["a b c d e f g h i j k l", "z"]
    score = generation_pb2.ScoreRequest(input=generate_request("hello").input, candidates=candidates)
    scored = await replica.stub.Score(score, metadata=bearer(MODEST))
    assert len(scored.scores) == 2
    stream = replica.stub.GenerateStream(stream_request(max_new_tokens=4, ignore_eos=True), metadata=bearer(MODEST))
    assert [part async for part in stream]
    assert not all(call.done() for call in calls), "both were served before the neighbour was done"
    brake.holds = False
    assert set(await asyncio.gather(*calls)) == {"served", "refused"}


def scrape(port: int) -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as response:
        return response.read()


async def test_the_metrics_port_names_no_prompts_of_several_tenants(replica: Replica, tiny_model_dir: Path) -> None:
    publish(replica.store, blob(tiny_model_dir, matrix(1), prompt="acme-layoffs"), "acme-layoffs")
    await replica.stub.Generate(generate_request(prompt="acme-layoffs", max_new_tokens=1), metadata=bearer(GREEDY))
    assert await replica.metric("tokens_total", kind="generated", prompt="other") == 1
    assert await replica.metric("tokens_total", prompt="acme-layoffs") == 0
    assert b"acme-layoffs" not in await asyncio.to_thread(scrape, replica.metrics_port)


def test_figures_by_prompt_for_one_tenant_or_by_setting() -> None:
    assert [
        InferenceSettings(base_model="m", store_url="s", **given).num_prompt_labels(tenants)  # type: ignore[arg-type]
        for given, tenants in (({}, 0), ({}, 1), ({}, 2), ({"max_prompt_labels": 7}, 2), ({"max_prompt_labels": 0}, 1))
    ] == [100, 100, 0, 7, 0]
