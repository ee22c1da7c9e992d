"""What a caller of the router sees is what a caller of a replica sees, whatever the records in the store say."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from prompttuning.v1 import generation_pb2 as pb

from shared.errors import InvalidInput, NotFound, Unavailable
from shared.security.tokens import hash_token, new_token
from shared.store import open_store
from shared.store.replicas import ReplicaDirectory, ReplicaRecord
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
from tests.inference_service.test_visibility_rpc import TIMES, requests_of
from tests.rpc_outcome import outcome_of
from tests.softprompt.router.readings import metric, reads_records, serves
from tests.softprompt.router.running import Router, knows, lie, running_router
from tests.tiny_models import save_tiny_llama
from tests.waiting import until

TOKEN = new_token()


@pytest.fixture(scope="module")
def birch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A second base model."""
    return save_tiny_llama(tmp_path_factory.mktemp("models") / "birch", seed=1)


@pytest.fixture
async def two(tiny_model_dir: Path, birch: Path, tmp_path: Path) -> AsyncIterator[tuple[Router, Replica, Replica]]:
    """A router over one replica of `tiny-llama` and one of `birch`, each with a prompt."""
    store = open_store(str(tmp_path / "store"))
    publish(store, blob(tiny_model_dir, matrix(1), "llama-tone"), "llama-tone")
    publish(store, blob(birch, matrix(2), "birch-tone"), "birch-tone")
    async with (
        running_replica(tiny_model_dir, tmp_path / "a", store_dir=tmp_path / "store", replica="a") as llama,
        running_replica(birch, tmp_path / "b", store_dir=tmp_path / "store", replica="b") as other,
        running_router(tmp_path / "r", tmp_path / "store") as router,
    ):
        await knows(router, "tiny-llama", "birch")
        yield router, llama, other


async def record_of(replica: Replica, base_model: str) -> ReplicaRecord:
    """The record that the replica of a base model writes."""
    directory = ReplicaDirectory(replica.store.backend)
    found: list[ReplicaRecord] = []

    def look() -> bool:
        found[:] = [item for item in directory.list() if item.base_model == base_model]
        return bool(found)

    await until(look)
    return found[0]


async def test_each_prompt_and_base_model_reaches_its_replica(two: tuple[Router, Replica, Replica]) -> None:
    router, llama, other = two
    for prompt, replica in (("llama-tone", llama), ("birch-tone@default", other), ("birch-tone@1", other)):
        direct = await replica.generate("hi", prompt)
        routed = await router.stub.Generate(generate_request("hi", prompt))
        assert (routed.start.version, routed.output) == (direct.start.version, direct.output)
        counted = await router.stub.CountTokens(
            pb.CountTokensRequest(input=pb.GenerationInput(prompt=prompt, text="hi"))
        )
        assert (counted.virtual_tokens, counted.input_tokens) == (8, 2)
    for base_model, replica in (("tiny-llama", llama), ("birch", other)):
        request = generate_request("hi")
        direct = await replica.stub.Generate(request)
        request.input.base_model = base_model
        assert (await router.stub.Generate(request)).output == direct.output
        request.input.base_model = (await record_of(replica, base_model)).base_model_fingerprint
        assert (await router.stub.Generate(request)).output == direct.output
        info = await router.stub.GetModelInfo(pb.GetModelInfoRequest(base_model=base_model))
        assert (info.base_model.id, list(info.base_models)) == (base_model, ["birch", "tiny-llama"])
    error = await refusal(router.stub.Generate(generate_request("hi")))
    assert isinstance(error, InvalidInput)
    assert error.violations[0].field == "input.base_model"
    assert isinstance(await refusal(router.stub.GetModelInfo(pb.GetModelInfoRequest(base_model="x"))), NotFound)
    listed = await router.stub.ListLoadedPrompts(pb.ListLoadedPromptsRequest())
    loaded = pb.LoadedPrompt.STATE_LOADED
    assert [(item.version, item.state) for item in listed.prompts] == [
        ("prompts/birch-tone/versions/1", loaded),
        ("prompts/llama-tone/versions/1", loaded),
    ]
    assert await metric(router, "softprompt_router_attempts_total", base_model="birch", grpc_code="OK") >= 4
    await serves(router, "birch")


async def test_a_prompt_that_was_published_just_now_and_one_that_moved(
    two: tuple[Router, Replica, Replica], birch: Path
) -> None:
    router, _, other = two
    publish(other.store, blob(birch, matrix(3), "newest"), "newest")
    assert (await router.stub.Generate(generate_request("hi", "newest"))).start.version == "prompts/newest/versions/1"
    publish(other.store, blob(birch, matrix(4), "llama-tone"), "llama-tone")  # for another base model than before

    async def has_moved() -> bool:
        try:
            answer = await router.stub.Generate(generate_request("hi", "llama-tone"))
        except grpc.aio.AioRpcError as error:  # the one replica has read of the move and the other has not
            if error.code() is not grpc.StatusCode.FAILED_PRECONDITION:
                raise
            return False
        return str(answer.start.version) == "prompts/llama-tone/versions/2"

    await until(has_moved)


async def test_records_that_lie_cost_attempts_and_no_answers(two: tuple[Router, Replica, Replica], birch: Path) -> None:
    router, llama, other = two
    directory, truth = ReplicaDirectory(llama.store.backend), await record_of(llama, "tiny-llama")
    lie(directory, truth, "itself", address=f"127.0.0.1:{router.port}")
    lie(directory, truth, "wrong-model", address=f"127.0.0.1:{other.port}")
    lie(directory, truth, "metrics", address=f"127.0.0.1:{llama.metrics_port}")
    lie(directory, truth, "nobody", address="127.0.0.1:1")
    (llama.store_dir / "replicas/broken.json").write_text("{")

    async def sees_them() -> bool:
        return await metric(router, "softprompt_router_replicas", base_model="tiny-llama", state="unreachable") >= 2

    await until(sees_them)
    direct = await llama.generate("hi", "llama-tone")
    bare = await llama.generate("hi")
    named = generate_request("hi")
    named.input.base_model = "tiny-llama"
    for _ in range(20):
        assert (await router.stub.Generate(generate_request("hi", "llama-tone"))).output == direct.output
        assert (await router.stub.Generate(named)).output == bare.output
        stream = router.stub.GenerateStream(stream_request("hi", "birch-tone"))
        assert (await stream.read()).start.version == "prompts/birch-tone/versions/1"
        stream.cancel()


async def test_callers_learn_what_they_would_learn_from_a_replica(
    tiny_model_dir: Path, birch: Path, tmp_path: Path
) -> None:
    callers = tmp_path / "callers.json"
    caller = {"name": "shop", "roles": ["generator"], "prompts": ["shop-*"], "token_sha256": [hash_token(TOKEN)]}
    callers.write_text(json.dumps({"callers": [caller]}))
    store = open_store(str(tmp_path / "store"))
    for number, prompt in enumerate(("shop-tone", "secret-tone")):
        publish(store, blob(tiny_model_dir, matrix(number), prompt), prompt)
    publish(store, blob(birch, matrix(5), "secret-birch"), "secret-birch")
    publish(store, blob(birch, matrix(6), "shop-birch"), "shop-birch")
    settings = {"store_dir": tmp_path / "store", "callers_file": str(callers)}
    async with (
        running_replica(tiny_model_dir, tmp_path / "a", **settings) as replica,
        running_router(tmp_path / "r", tmp_path / "store") as router,
    ):
        for prompt in ("shop-tone", "secret-tone", "secret-birch", "nothing", "shop-nothing", "shop-tone@9", "NO!"):
            for method, request in requests_of(prompt):
                about = (method, request, TOKEN, TIMES, 1)
                assert await outcome_of(router.stub, *about) == await outcome_of(replica.stub, *about), about
        forged = ("Generate", generate_request("hi", "shop-tone"), "wrong")
        assert await outcome_of(router.stub, *forged) == await outcome_of(replica.stub, *forged)
        for method in ("Generate", "Score", "CountTokens"):
            call: Any = router.channel.unary_unary(f"/prompttuning.v1.GenerationService/{method}", None, None)
            direct: Any = replica.channel.unary_unary(f"/prompttuning.v1.GenerationService/{method}", None, None)
            metadata = (("authorization", f"Bearer {TOKEN}"),)
            refusals = [await refusal(asked(b"\xff\xff", metadata=metadata)) for asked in (call, direct)]
            assert str(refusals[0]) == str(refusals[1])
        # No replica of its base model is live: only a caller who may use the prompt learns that there is one.
        authorization = ("authorization", f"Bearer {TOKEN}")
        error = await refusal(router.stub.Generate(generate_request("hi", "shop-birch"), metadata=(authorization,)))
        assert isinstance(error, Unavailable)
        assert error.message == "no live replica has the base model of shop-birch"
        huge = (("authorization", f"Bearer {'x' * 30_000}"),)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await router.stub.Generate(generate_request("hi", "shop-tone"), metadata=huge)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        sent_id = (authorization, ("x-request-id", "from-the-caller"))
        answer = await router.stub.Generate(generate_request("hi", "shop-tone"), metadata=sent_id)
        assert answer.start.request_id == "from-the-caller"


async def test_cancellations_reach_the_replica_and_a_drain_lets_streams_finish(
    two: tuple[Router, Replica, Replica], brake: Brake
) -> None:
    router, llama, _ = two
    brake.holds = True

    async def running() -> float:
        return await llama.metric("requests_running")

    stream = router.stub.GenerateStream(stream_request("hi", "llama-tone", max_new_tokens=400, ignore_eos=True))
    await stream.read()
    stream.cancel()

    async def is_idle() -> bool:
        return await running() == 0

    await until(is_idle)

    async def is_counted() -> bool:
        labels = {"base_model": "tiny-llama", "grpc_code": "CANCELLED"}
        return await metric(router, "softprompt_router_attempts_total", **labels) == 1

    await until(is_counted)
    labels = {"base_model": "tiny-llama", "grpc_code": "OK"}
    before = await metric(router, "softprompt_router_attempts_total", **labels)
    await router.stub.Generate(generate_request("hi", "llama-tone"))
    assert await metric(router, "softprompt_router_attempts_total", **labels) == before + 1
    last = router.stub.GenerateStream(stream_request("hi", "llama-tone", max_new_tokens=60, ignore_eos=True))
    await last.read()
    router.stop.set()
    brake.holds = False
    part = None
    while (read := await last.read()) is not grpc.aio.EOF:
        part = read
    assert part is not None
    assert part.end.output_tokens == 60
    await until(router.done.done)


async def test_the_router_goes_on_while_the_store_is_away(two: tuple[Router, Replica, Replica]) -> None:
    router, llama, _ = two
    llama.store_dir.rename(llama.store_dir.with_name("away"))
    try:
        await until(lambda: not (llama.store_dir / "store.json").exists())
        answer = await router.stub.Generate(generate_request("hi", "llama-tone"))
        assert answer.start.version == "prompts/llama-tone/versions/1"
    finally:
        llama.store_dir.with_name("away").rename(llama.store_dir)


async def test_base_models_stay_known_while_replicas_cannot_write_their_records(
    tiny_model_dir: Path, birch: Path, tmp_path: Path
) -> None:
    directory = ReplicaDirectory(open_store(str(tmp_path / "store")).backend)
    models = ["birch", "tiny-llama"]
    async with (
        running_replica(birch, tmp_path / "b") as other,
        running_replica(tiny_model_dir, tmp_path / "a") as llama,
    ):
        for model, replica in zip(models, (other, llama), strict=True):
            address = f"127.0.0.1:{replica.port}"
            lie(directory, await record_of(replica, model), model, address=address, heartbeat_seconds=3600)
        async with (
            running_router(tmp_path / "r", tmp_path / "store") as router,
            running_router(tmp_path / "d", tmp_path / "store", default_base_model="birch") as with_default,
        ):
            for one in (router, with_default):
                for model in models:
                    await serves(one, model)
            for model in models:
                directory.remove(model)
            for one in (router, with_default):
                await reads_records(one)
                info = await one.stub.GetModelInfo(pb.GetModelInfoRequest())
                assert (info.base_model.id, list(info.base_models)) == ("birch", models)
            ambiguous = await refusal(router.stub.Generate(generate_request("hi")))
            assert isinstance(ambiguous, InvalidInput)
            expected = (await other.generate("hi")).output
            for _ in range(8):
                assert (await with_default.stub.Generate(generate_request("hi"))).output == expected
