"""The life of prompts under a running replica: swap, rollback, a store that goes away, callers that vanish, an engine
that dies.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prompttuning.v1 import generation_pb2

from inference_service.engine.engine import Engine
from shared.errors import Unavailable
from shared.store import AliasTarget, open_store
from shared.store.replicas import ReplicaDirectory
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

V1, V2, V3 = (f"prompts/tone/versions/{number}" for number in (1, 2, 3))


async def rest(stream: Any) -> list[generation_pb2.GenerateStreamResponse]:
    """What a stream still has to say."""
    parts = []
    while (part := await stream.read()) is not grpc.aio.EOF:
        parts.append(part)
    return parts


async def test_a_swap_leaves_a_running_stream_alone(replica: Replica, tiny_model_dir: Path, brake: Brake) -> None:
    publish(replica.store, blob(tiny_model_dir, matrix(1)))
    sampling: dict[str, Any] = {"max_new_tokens": 300, "temperature": 0, "ignore_eos": True}
    alone = await replica.generate("hello", "tone", **sampling)
    brake.holds = True
    stream = replica.stub.GenerateStream(stream_request("hello", "tone", **sampling))
    assert (await stream.read()).start.version == V1
    publish(replica.store, blob(tiny_model_dir, matrix(2)))
    await replica.state(V2, "LOADED")

    async def new_requests_get_v2() -> bool:
        return await replica.served_version() == V2

    await until(new_requests_get_v2)
    assert (await replica.loaded())[V1].active_requests == 1
    brake.holds = False
    parts = await rest(stream)
    assert parts[-1].end.finish_reason == generation_pb2.FINISH_REASON_LENGTH
    assert [token for part in parts for token in part.delta.token_ids] == list(alone.output.token_ids)
    other = await replica.generate("hello", "tone", **sampling)
    assert other.output.token_ids != alone.output.token_ids
    assert (await replica.loaded())[V1].active_requests == 0
    sizes = [item.prefix_kv_bytes for item in (await replica.loaded()).values()]
    assert min(sizes) > 0
    assert sum(sizes) == await replica.metric("prefix_kv_bytes")


async def test_a_rollback_is_one_alias_move(replica: Replica, tiny_model_dir: Path) -> None:
    for seed in (1, 2):
        publish(replica.store, blob(tiny_model_dir, matrix(seed)))
    await replica.state(V2, "LOADED")
    replica.store.set_alias("tone", "default", 1)

    async def back() -> bool:
        return await replica.served_version() == V1

    await until(back)


async def test_a_weighted_alias_is_stable_for_a_routing_key(replica: Replica, tiny_model_dir: Path) -> None:
    for seed in (1, 2):
        publish(replica.store, blob(tiny_model_dir, matrix(seed)))
    replica.store.set_alias("tone", "canary", [AliasTarget(1, 50), AliasTarget(2, 50)])
    await replica.state(V2, "LOADED")
    seen = set()
    for key in range(16):
        request = generate_request("x", "tone@canary", max_new_tokens=1)
        request.input.routing_key = f"user-{key}"
        versions = {(await replica.stub.Generate(request)).start.version for _ in range(2)}
        assert len(versions) == 1
        seen |= versions
    assert seen == {V1, V2}


async def test_the_store_may_go_away_and_come_back(replica: Replica, tiny_model_dir: Path) -> None:
    publish(replica.store, blob(tiny_model_dir, matrix(1)))
    await replica.state(V1, "LOADED")
    away = replica.store_dir.with_name("elsewhere")
    replica.store_dir.rename(away)

    async def failing() -> bool:
        return await replica.metric("store_errors_total") > 0

    await until(failing)
    assert await replica.served_version() == V1
    with pytest.raises(Unavailable):
        publish(replica.store, blob(tiny_model_dir, matrix(2)))
    away.rename(replica.store_dir)
    publish(replica.store, blob(tiny_model_dir, matrix(2)))
    await replica.state(V2, "LOADED")
    assert await replica.served_version() == V2


async def test_a_client_that_vanishes_frees_its_place(replica: Replica, brake: Brake) -> None:
    brake.holds = True
    stream = replica.stub.GenerateStream(stream_request(max_new_tokens=400, ignore_eos=True))
    await stream.read()
    assert await replica.metric("requests_running") == 1
    stream.cancel()

    async def free() -> bool:
        return await replica.metric("requests_running") == 0

    await until(free)
    assert await replica.metric("requests_finished_total", finish_reason="CANCELLED") == 1


async def test_a_caller_that_gives_up_on_a_whole_answer_frees_its_place(replica: Replica, brake: Brake) -> None:
    brake.holds = True
    call = replica.stub.Generate(generate_request(max_new_tokens=400, ignore_eos=True))

    async def running() -> bool:
        return await replica.metric("requests_running") == 1

    async def free() -> bool:
        return await replica.metric("requests_running") == 0

    await until(running)
    call.cancel()
    await until(free)
    assert await replica.metric("requests_finished_total", finish_reason="CANCELLED") == 1


async def test_the_fleet_sees_what_a_replica_serves_and_refused(replica: Replica, tiny_model_dir: Path) -> None:
    publish(replica.store, blob(tiny_model_dir, matrix(1)))
    publish(replica.store, blob(tiny_model_dir, matrix(1, hidden_size=48)))
    directory = ReplicaDirectory(replica.store.backend)
    record = await until(lambda: next((found for found in directory.list() if found.loaded and found.refused), None))
    assert [(item.prompt, item.version) for item in record.loaded] == [("tone", 1)]
    assert record.loaded[0].publish_to_served_seconds is not None
    assert "hidden size 48" in record.refused[0].reason
    replica.stop.set()
    await until(lambda: not directory.list())


async def test_a_request_that_no_step_can_compute_is_an_internal_error_of_its_own(
    replica: Replica, monkeypatch: pytest.MonkeyPatch, brake: Brake
) -> None:
    compute = Engine._compute

    def flaky(self: Engine, plan: Any) -> Any:
        if any(chunk.sequence.num_input == len("abc") + 3 for chunk in plan.chunks):
            raise RuntimeError("a kernel's own words")
        return compute(self, plan)

    monkeypatch.setattr(Engine, "_compute", flaky)
    brake.seconds = 0.01
    beside = replica.stub.GenerateStream(stream_request("hello", max_new_tokens=40, ignore_eos=True))
    stream = aiter(beside)
    await anext(stream)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await replica.generate("abc")
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert "kernel" not in (caught.value.details() or "")
    assert sum([len(response.delta.token_ids) async for response in stream]) == 40
    assert await replica.metric("requests_finished_total", finish_reason="INTERNAL") == 1


async def test_a_dead_engine_stops_serving_and_ends_the_process(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_replica(tiny_model_dir, tmp_path) as replica:
        watch = health_pb2_grpc.HealthStub(replica.channel).Watch(health_pb2.HealthCheckRequest(service="ready"))
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING

        def broken(self: Engine) -> list[Any]:
            raise MemoryError

        monkeypatch.setattr(Engine, "step", broken)
        assert isinstance(await refusal(replica.generate()), Unavailable)
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        with pytest.raises(BaseExceptionGroup):
            await replica.done


async def test_a_drain_lets_running_streams_finish_and_takes_no_new_ones(
    tiny_model_dir: Path, tmp_path: Path, brake: Brake
) -> None:
    async with running_replica(tiny_model_dir, tmp_path) as replica:
        brake.seconds = 0.01
        stream = replica.stub.GenerateStream(stream_request(max_new_tokens=100, ignore_eos=True))
        await stream.read()
        watch = health_pb2_grpc.HealthStub(replica.channel).Watch(health_pb2.HealthCheckRequest(service="ready"))
        await watch.read()
        replica.stop.set()
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        parts = await rest(stream)
        assert parts[-1].end.output_tokens == 100
        await replica.done
        with pytest.raises(grpc.aio.AioRpcError):
            await replica.generate()


async def test_a_stream_that_outlives_the_grace_time_ends_with_what_is_written(
    tiny_model_dir: Path, tmp_path: Path, brake: Brake
) -> None:
    async with running_replica(tiny_model_dir, tmp_path, grace_seconds=4) as replica:
        brake.holds = True
        stream = replica.stub.GenerateStream(stream_request(max_new_tokens=400, ignore_eos=True))
        await stream.read()
        replica.stop.set()
        end = (await rest(stream))[-1].end
        assert end.finish_reason == generation_pb2.FINISH_REASON_CANCELLED
        assert 0 < end.output_tokens < 400
        await replica.done


async def test_aliased_versions_are_loaded_before_serving_and_others_on_demand(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    store = open_store(str(tmp_path / "store"))
    for seed in (1, 2, 3):
        publish(store, blob(tiny_model_dir, matrix(seed)), alias="default" if seed == 2 else None)
    async with running_replica(tiny_model_dir, tmp_path) as replica:
        states = {name: item.state for name, item in (await replica.loaded("tone")).items()}
        known, loaded = generation_pb2.LoadedPrompt.STATE_KNOWN, generation_pb2.LoadedPrompt.STATE_LOADED
        assert states == {V1: known, V2: loaded, V3: known}
        assert await replica.served_version("tone@3") == V3
        assert (await replica.loaded("tone"))[V3].state == loaded


async def test_more_versions_than_memory_holds_are_all_served(tiny_model_dir: Path, tmp_path: Path) -> None:
    async with running_replica(tiny_model_dir, tmp_path, max_loaded_versions=2) as replica:
        answers = {}
        for seed in range(1, 6):
            publish(replica.store, blob(tiny_model_dir, matrix(seed)), alias=None)
            answers[seed] = (await replica.generate("hello", f"tone@{seed}", temperature=0)).output.token_ids
        assert await replica.metric("versions_loaded") == 2
        for seed in range(1, 6):
            assert (await replica.generate("hello", f"tone@{seed}", temperature=0)).output.token_ids == answers[seed]


async def test_a_deleted_version_is_gone(replica: Replica, tiny_model_dir: Path) -> None:
    for seed, version in ((1, V1), (2, V2)):  # one after the other: a version still on its way in is not listed either
        publish(replica.store, blob(tiny_model_dir, matrix(seed)))
        await replica.state(version, "LOADED")
    replica.store.delete_version("tone", 1)

    async def gone() -> bool:
        return V1 not in await replica.loaded()

    await until(gone)
    assert "does not exist" in (await refusal(replica.generate("hello", "tone@1"))).message
    assert await replica.metric("versions_loaded") == 1
