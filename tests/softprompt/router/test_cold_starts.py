"""Calls for a base model that is scaled to zero: they wait for its first replica, within bounds."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest
from prompttuning.v1 import generation_pb2 as pb

from shared.config import ConfigError
from shared.errors import InvalidInput, NotFound, Overloaded, Unauthenticated, Unavailable
from shared.security.tokens import hash_token, new_token
from shared.store import open_store
from softprompt.client.security import ClientSecurity
from softprompt.router.server import serve
from softprompt.router.settings import RouterSettings
from softprompt.routing.cold_starts import ColdStarts
from tests.inference_service.replica import blob, generate_request, matrix, publish, refusal, running_replica
from tests.softprompt.router.readings import metric
from tests.softprompt.router.running import Router, running_router
from tests.tiny_models import save_tiny_llama
from tests.waiting import until

TOKEN = new_token()


@pytest.fixture(scope="module")
def birch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("models") / "birch", seed=1)


def models_file(path: Path, **replicas: dict[str, Any]) -> Path:
    """`replicas`: of each base model, whose id has - for _."""
    entries = [
        {"id": name.replace("_", "-"), "source": f"/models/{name}", "replicas": said} for name, said in replicas.items()
    ]
    path.write_text(json.dumps({"models": entries}))
    return path


async def waiting(router: Router, base_model: str) -> float:
    return await metric(router, "softprompt_router_waiting", base_model=base_model)


def bare(base_model: str) -> Any:
    request = generate_request("hi")
    request.input.base_model = base_model
    return request


async def test_the_first_calls_wait_for_the_replica_that_they_make_start(tiny_model_dir: Path, tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    listed = models_file(tmp_path / "models.json", tiny_llama={"least": 0, "most": 3})
    async with running_router(tmp_path / "r", tmp_path / "store", models_file=listed, poll_seconds=60) as router:
        assert await waiting(router, "tiny-llama") == 0, "the autoscaler sees the series before the first call"
        publish(store, blob(tiny_model_dir, matrix(1), "tone"), "tone")  # it must know a prompt of just now
        calls = [
            router.stub.Generate(request)
            for request in (generate_request("hi", "tone"), bare("tiny-llama"), generate_request("hi"))
        ]

        async def all_wait() -> bool:
            return await waiting(router, "tiny-llama") == 3

        await until(all_wait)
        async with running_replica(tiny_model_dir, tmp_path / "a", store_dir=tmp_path / "store") as replica:
            prompted, named, unnamed = await asyncio.gather(*calls)
            assert prompted.start.version == "prompts/tone/versions/1"
            assert named.output == unnamed.output == (await replica.generate("hi")).output
            assert await waiting(router, "tiny-llama") == 0
            assert (await router.stub.Generate(generate_request("hi", "tone"))).output == prompted.output


async def test_a_wait_ends_at_its_bound_and_a_call_at_its_deadline(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.security.json_file._LOOK_SECONDS", 0)
    publish(open_store(str(tmp_path / "store")), blob(tiny_model_dir, matrix(1), "tone"), "tone")
    others: dict[str, Any] = {"slow": {"least": 0, "launch_seconds": 3600}, "kept": {"least": 1}}
    listed = models_file(tmp_path / "models.json", tiny_llama={"least": 0, "launch_seconds": 3600}, **others)
    async with running_router(
        tmp_path / "r", tmp_path / "store", models_file=listed, max_waiting=1, wait_seconds=1
    ) as router:
        begun = time.monotonic()
        first = asyncio.create_task(refusal(router.stub.Generate(generate_request("hi", "tone"))))

        async def one_waits() -> bool:
            return await waiting(router, "tiny-llama") == 1

        await until(one_waits)
        assert isinstance(await refusal(router.stub.Generate(bare("tiny-llama"))), Overloaded)
        models_file(listed, tiny_llama={"least": 0, "launch_seconds": 0.5}, **others)
        given_up = await first
        assert isinstance(given_up, Unavailable)
        assert given_up.message == "no replica for tone has started yet"
        assert time.monotonic() - begun >= 0.5
        assert isinstance(await refusal(router.stub.Generate(bare("kept"))), Unavailable), "it is not scaled to zero"
        error = await refusal(router.stub.GetModelInfo(pb.GetModelInfoRequest(base_model="tiny-llama")))
        assert isinstance(error, Unavailable), "a question about replicas starts none"
        assert isinstance(await refusal(router.stub.Generate(generate_request("hi", "unknown"))), Unavailable)
        with pytest.raises(Exception, match="DEADLINE_EXCEEDED"):
            await router.stub.Generate(bare("slow"), timeout=0.3)

        async def none_waits() -> bool:
            return await waiting(router, "slow") == 0

        await until(none_waits)
        last = asyncio.create_task(refusal(router.stub.Generate(bare("slow"))))

        async def slow_waits() -> bool:
            return await waiting(router, "slow") == 1

        await until(slow_waits)
        router.stop.set()
        assert isinstance(await last, Unavailable), "a router that ends holds no calls"


async def test_waiting_calls_hold_a_bounded_number_of_bytes() -> None:
    cold_starts = ColdStarts(lambda: {"m": 60.0}, max_waiting=10, max_waiting_bytes=100)

    def wait(num_bytes: int) -> asyncio.Task[bool]:
        began = asyncio.get_running_loop().time()
        return asyncio.create_task(cold_starts.wait("m", num_bytes, lambda: False, began))

    first, second = wait(200), wait(1)  # one alone may have any size, which the size of messages limits
    with pytest.raises(Overloaded, match="too many calls wait for replicas to start: 1, which hold 200 bytes"):
        await second
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    tasks = [wait(60), wait(40), wait(1)]
    with pytest.raises(Overloaded, match="start: 2, which hold 100 bytes"):
        await tasks[2]
    assert cold_starts.waiting() == {"m": 2}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert cold_starts.waiting() == {"m": 0}


async def test_a_fingerprint_wakes_the_base_model_that_prompts_were_tuned_for(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    made = blob(tiny_model_dir, matrix(1), "tone")
    publish(open_store(str(tmp_path / "store")), made, "tone")
    known = open_store(str(tmp_path / "store")).refresh().prompts["tone"].version(1).summary.base_model_fingerprint
    listed = models_file(tmp_path / "models.json", tiny_llama={"least": 0, "launch_seconds": 60})
    async with running_router(tmp_path / "r", tmp_path / "store", models_file=listed) as router:
        unknown = await refusal(router.stub.Generate(bare("sha256:" + "0" * 64)))
        assert isinstance(unknown, Unavailable)
        assert "if it is scaled to zero, a call that names its id starts one" in unknown.message
        waits = router.stub.Generate(bare(known))

        async def it_waits() -> bool:
            return await waiting(router, "tiny-llama") == 1

        await until(it_waits)
        waits.cancel()


async def test_only_a_caller_who_may_use_the_prompt_makes_a_replica_start(
    tiny_model_dir: Path, birch: Path, tmp_path: Path
) -> None:
    store = open_store(str(tmp_path / "store"))
    for prompt in ("shop-birch", "secret-birch"):
        publish(store, blob(birch, matrix(1), prompt), prompt)
    callers = tmp_path / "callers.json"
    caller = {"name": "shop", "roles": ["generator"], "prompts": ["shop-*"], "token_sha256": [hash_token(TOKEN)]}
    callers.write_text(json.dumps({"callers": [caller]}))
    listed = models_file(tmp_path / "models.json", tiny_llama={"least": 1}, birch={"least": 0})
    settings = {"store_dir": tmp_path / "store", "callers_file": str(callers)}
    token = (("authorization", f"Bearer {TOKEN}"),)
    async with (
        running_replica(tiny_model_dir, tmp_path / "a", **settings),
        running_router(tmp_path / "r", tmp_path / "store", models_file=listed) as router,
    ):
        for request in (generate_request("hi", "shop-birch"), bare("birch")):
            assert isinstance(await refusal(router.stub.Generate(request)), Unauthenticated)
        hidden = await refusal(router.stub.Generate(generate_request("hi", "secret-birch"), metadata=token))
        assert isinstance(hidden, NotFound)
        ambiguous = await refusal(router.stub.Generate(generate_request("hi"), metadata=token))
        assert isinstance(ambiguous, InvalidInput), "two base models are served, though one sleeps"
        info = await router.stub.GetModelInfo(pb.GetModelInfoRequest(), metadata=token)
        assert (info.base_model.id, list(info.base_models)) == ("tiny-llama", ["birch", "tiny-llama"])
        asked = router.stub.Generate(generate_request("hi", "shop-birch"), metadata=token)

        async def it_waits() -> bool:
            return await waiting(router, "birch") == 1

        await until(it_waits)
        async with running_replica(birch, tmp_path / "b", replica="b", **settings):
            assert (await asked).start.version == "prompts/shop-birch/versions/1"


async def test_a_file_that_is_wrong_stops_the_start(tmp_path: Path) -> None:
    wrong = models_file(tmp_path / "models.json", a={"least": 2, "most": 1})
    settings = RouterSettings(store_url=str(tmp_path / "store"), models_file=wrong)
    with pytest.raises(ConfigError, match=r"SOFTPROMPT_ROUTER_MODELS_FILE: .*models\.0\.replicas: least"):
        await serve(settings, asyncio.Event(), ClientSecurity())
