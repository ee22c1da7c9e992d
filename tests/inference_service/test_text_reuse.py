"""A tenant learns nothing about another tenant's inputs, by counts of cached tokens or by the order of work."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from prompttuning.v1 import common_pb2, generation_pb2

from inference_service.engine.core.request import FinishReason, GenerationRequest
from inference_service.engine.core.running_request import RunningRequest
from inference_service.engine.engine import Engine
from inference_service.engine.kv.blocks import BlockPool
from inference_service.engine.kv.rows import RowPool
from inference_service.engine.scheduler import Scheduler
from shared.security.tokens import MIN_TOKEN_CHARS, hash_token
from shared.values.sampling import SamplingParams
from tests.inference_service.engine.builders import drain, greedy, small_config, soft_prompt, tiny_base
from tests.inference_service.replica import Replica, blob, matrix, publish, running_replica

KNOWN = tuple(range(11, 31))
DIGITS = (4, 7, 1, 9)
SECRET = (*KNOWN, *DIGITS, *range(100, 150))
"""Longer than twice its beginning: a guess leaves the row to it, instead of taking it over."""


async def recovered_digits(cached_tokens: Callable[[tuple[int, ...]], Awaitable[int]]) -> tuple[int, ...]:
    """The attack: no input of the attacker's own begins like a new guess to its end, so a guess that is cached whole is
    the victim's.
    """
    known = KNOWN
    for _ in DIGITS:
        counts = [await cached_tokens((*known, digit, 190 + len(known))) for digit in range(10)]
        right = [digit for digit in range(10) if counts[digit] > len(known)]
        if not right:
            break
        known = (*known, right[0])
    return known[len(KNOWN) :]


def sequence(number: int, tenant: str, tokens: tuple[int, ...]) -> RunningRequest:
    return RunningRequest(
        f"r{number}",
        list(tokens),
        len(tokens),
        SamplingParams(),
        1,
        prefix_id="p",
        num_virtual=4,
        arrival=number,
        tenant=tenant,
    )


class Planned:
    """A scheduler without a model, driven request by request."""

    def __init__(self, pool: RowPool | BlockPool) -> None:
        self.scheduler, self.number = Scheduler(pool, 256), 0

    async def cached_tokens(self, tenant: str, tokens: tuple[int, ...], *, finish: bool = True) -> int:
        self.number += 1
        asked = sequence(self.number, tenant, tokens)
        self.scheduler.add(asked)
        while asked.num_computed < asked.length:
            self.scheduler.complete(self.scheduler.schedule(0.0))
        if finish:
            self.scheduler.finish(asked, FinishReason.LENGTH)
        return asked.cached_tokens


POOLS: dict[str, Callable[..., RowPool | BlockPool]] = {
    "rows": lambda **fields: RowPool(64, 64 * 4, 128, **fields),
    "blocks": lambda **fields: BlockPool(64, 64 * 4, 128, 32, **fields),
}


@pytest.mark.parametrize("kind", POOLS)
@pytest.mark.parametrize("victim_runs", [True, False])
async def test_the_digits_oracle_tells_nothing_across_tenants(kind: str, victim_runs: bool) -> None:
    planned = Planned(POOLS[kind]())
    await planned.cached_tokens("victim", SECRET, finish=not victim_runs)
    assert await recovered_digits(lambda tokens: planned.cached_tokens("attacker", tokens)) == ()
    assert await planned.cached_tokens("victim", (*SECRET[:24], 5)) == 24, "the victim's own tenant starts from it"


@pytest.mark.parametrize("kind", POOLS)
async def test_where_reuse_is_for_all_the_oracle_is_there(kind: str) -> None:
    """What the setting's description warns of, and the proof that the attack above would find what there is to find."""
    planned = Planned(POOLS[kind](across_tenants=True))
    await planned.cached_tokens("victim", SECRET)
    assert await recovered_digits(lambda tokens: planned.cached_tokens("attacker", tokens)) == DIGITS


@pytest.mark.parametrize("kind", POOLS)
@pytest.mark.parametrize(("tenant", "waits"), [("victim", True), ("attacker", False)])
def test_a_request_is_not_postponed_for_another_tenants_beginning(kind: str, tenant: str, waits: bool) -> None:
    scheduler = Scheduler(POOLS[kind](), 16)
    victim, other = (sequence(number, who, tuple(range(100))) for number, who in enumerate(("victim", tenant)))
    scheduler.add(victim)
    scheduler.complete(scheduler.schedule(0.0))
    scheduler.max_tokens_per_step = 512
    scheduler.add(other)
    victim_and_others = {chunk.sequence for chunk in scheduler.schedule(0.0).chunks}
    assert victim_and_others == ({victim} if waits else {victim, other})


@pytest.mark.parametrize("paged", [False, True])
def test_the_engine_computes_the_same_for_both_tenants(paged: bool) -> None:
    engine = Engine.from_base_model(tiny_base(), small_config(paged=paged))
    engine.load_prefix("a", soft_prompt(engine.base))
    found = {}
    for name, tenant in (("first", "victim"), ("foreign", "attacker"), ("own", "victim")):
        engine.submit(GenerationRequest(name, SECRET, greedy(8), "a", tenant=tenant))
        found[name] = drain(engine)[name]
    cached = {name: delta.usage.cached_tokens for name, delta in found.items() if delta.usage is not None}
    assert cached == {"first": 0, "foreign": 0, "own": len(SECRET) - 1}
    assert len({delta.token_ids for delta in found.values()}) == 1


def token_of(caller: str) -> str:
    return caller.ljust(MIN_TOKEN_CHARS, "-")


def callers_file(directory: Path) -> str:
    """Two callers of one tenant and one of another, all of whom may use every prompt."""

    def entry(name: str, tenant: str) -> dict[str, Any]:
        return {"name": name, "tenant": tenant, "roles": ["generator"], "token_sha256": [hash_token(token_of(name))]}

    file = directory / "callers.json"
    callers = [entry("victim-app", "victim"), entry("victim-web", "victim"), entry("attacker-app", "attacker")]
    file.write_text(json.dumps({"tenants": [{"name": "victim"}, {"name": "attacker"}], "callers": callers}))
    return str(file)


def metadata(caller: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token_of(caller)}"),)


async def generate(
    replica: Replica, caller: str, tokens: tuple[int, ...], prompt: str
) -> generation_pb2.GenerationStart:
    source = generation_pb2.GenerationInput(prompt=prompt, token_ids=generation_pb2.TokenIds(ids=tokens))
    request = generation_pb2.GenerateRequest(input=source, sampling=common_pb2.SamplingParams(max_new_tokens=1))
    return (await replica.stub.Generate(request, metadata=metadata(caller))).start


async def score(replica: Replica, caller: str, tokens: tuple[int, ...], prompt: str) -> generation_pb2.GenerationStart:
    source = generation_pb2.GenerationInput(prompt=prompt, token_ids=generation_pb2.TokenIds(ids=tokens))
    request = generation_pb2.ScoreRequest(input=source, candidates=["yes", "no"])
    return (await replica.stub.Score(request, metadata=metadata(caller))).start


@pytest.mark.parametrize("text_reuse", ["tenant", "off", "all"])
async def test_an_attacker_with_a_token_of_its_own_learns_nothing(
    tiny_model_dir: Path, tmp_path: Path, text_reuse: str
) -> None:
    settings = {"callers_file": callers_file(tmp_path), "text_reuse": text_reuse, "max_running": 128}
    async with running_replica(tiny_model_dir, tmp_path, **settings) as replica:
        for prompt in ("tone", "mood"):
            publish(replica.store, blob(tiny_model_dir, matrix(1), prompt=prompt), prompt)
        for call, prompt in ((generate, "tone"), (score, "mood"), (generate, "")):

            async def cached(caller: str, tokens: tuple[int, ...], call: Any = call, prompt: str = prompt) -> int:
                start = await call(replica, caller, tokens, prompt)
                return int(start.cached_tokens - start.virtual_tokens)

            await cached("victim-app", SECRET)
            found = await recovered_digits(lambda tokens, cached=cached: cached("attacker-app", tokens))  # type: ignore[misc]
            assert found == (DIGITS if text_reuse == "all" else ())
            own = await cached("victim-web", (*KNOWN, *DIGITS, 5, 6))
            assert own == (0 if text_reuse == "off" else len(KNOWN) + len(DIGITS))


async def test_a_request_id_does_not_hide_a_caller_from_the_metrics(tiny_model_dir: Path, tmp_path: Path) -> None:
    async with running_replica(tiny_model_dir, tmp_path) as replica:
        source = generation_pb2.GenerationInput(text="hello")
        request = generation_pb2.GenerateRequest(input=source, sampling=common_pb2.SamplingParams(max_new_tokens=1))
        await replica.stub.Generate(request, metadata=(("x-request-id", "replay-1"),))
        assert await replica.metric("time_to_first_token_seconds_count", prompt="none") == 1
