"""Failed loads: what the engine or the memory is to blame for is tried again, what would end the same again is
quarantined.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from inference_service.engine.async_engine import AsyncEngine
from inference_service.engine.engine import Engine
from inference_service.prompts import version_loader
from inference_service.prompts.heartbeat import Heartbeat
from inference_service.prompts.load_queue import MAX_FAILED_REPLAYS, MAX_FAULTS, VersionLoads
from inference_service.prompts.registry import PromptRegistry
from inference_service.prompts.version import RefusalReason, ServableVersion
from inference_service.prompts.version_loader import VersionLoader
from inference_service.prompts.watcher import PromptWatcher
from shared.caller import Caller, Tenant, calling
from shared.errors import DamagedBlob, InvalidInput, PreconditionFailed, Unavailable
from shared.model import base_model
from shared.prompt.manifest import GoldenRecord
from shared.prompt.soft_prompt import SoftPrompt
from shared.store import PromptStore, VersionRecord, open_store
from shared.store.replicas import ReplicaDirectory
from shared.text.golden_inputs import golden_input_ids
from shared.text.template import InputEncoder, Template
from tests.inference_service.engine.builders import small_config
from tests.inference_service.prompts.fakes import NullPromptObserver
from tests.inference_service.replica import blob, matrix, publish
from tests.inference_service.test_proof_rpc import golden_of
from tests.tiny_models import FLOAT32, byte_tokenizer
from tests.waiting import until


class Bench:
    """A replica's loading without a server: the real engine, loader, registry and heartbeat over a real store."""

    def __init__(self, model_dir: Path, directory: Path) -> None:
        base = base_model.load(model_dir, FLOAT32)
        self.store: PromptStore = open_store(str(directory / "store"))
        self.engine = AsyncEngine(Engine.from_base_model(base, small_config()))
        self.loader = VersionLoader(self.store, self.engine, base, self.engine.engine.config.max_length, 20)
        self.registry = PromptRegistry(self.loader.unload)
        self.loads = VersionLoads(self.loader, self.registry, NullPromptObserver())
        self.directory = ReplicaDirectory(self.store.backend)
        self.heartbeat = Heartbeat(self.directory, self.registry, "replica", base.info, 1.0)
        self.watcher = PromptWatcher(self.store, self.registry, self.loads, NullPromptObserver(), poll_seconds=0.005)
        self.model_dir = model_dir

    def publish(self, seed: int, golden: tuple[GoldenRecord, ...] = (), prompt: str = "tone") -> VersionRecord:
        return publish(self.store, blob(self.model_dir, matrix(seed), prompt=prompt, golden=golden), prompt)

    async def load(self, record: VersionRecord) -> Exception | None:
        self.registry.update(self.store.changes_since(None).index)
        try:
            await self.loads.load(record)
        except Unavailable as error:
            return error
        return None

    def reasons(self) -> list[RefusalReason]:
        return [item.reason for item in self.registry._quarantined.values()]


@pytest.fixture
async def bench(tiny_model_dir: Path, tmp_path: Path) -> AsyncIterator[Bench]:
    subject = Bench(tiny_model_dir, tmp_path)
    subject.engine.start()
    yield subject
    await subject.loads.close()
    await subject.engine.stop()


async def test_a_replay_that_stop_cuts_off_is_no_verdict_and_the_fleet_hears_of_none(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    (first,) = golden_of(bench.model_dir, matrix(1))
    record = bench.publish(1, (first, first.model_copy(update={"input_ids": (30, 31, 32)})))
    run, entered, released = bench.engine.engine.runner.run, threading.Event(), threading.Event()

    def held(*args: Any) -> torch.Tensor:
        entered.set()
        released.wait()
        return run(*args)

    monkeypatch.setattr(bench.engine.engine.runner, "run", held)
    loading = asyncio.create_task(bench.load(record))
    await until(entered.is_set)
    for name in list(bench.engine._streams):  # as `stop` does once the grace time is over
        bench.engine._send(lambda name=name: bench.engine._cancel(name))  # type: ignore[misc]
    stopping = asyncio.create_task(bench.engine.stop())
    released.set()
    assert isinstance(await loading, Unavailable)
    await stopping
    assert bench.reasons() == []
    assert bench.heartbeat.record().refused == ()


async def test_a_load_tokenizes_and_looks_at_numbers_off_the_event_loop(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = dict[str, str]()

    def noted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            used.setdefault(name, threading.current_thread().name)  # the engine checks the numbers again in its thread
            return function(*args)

        return call

    for name in ("golden_input_ids", "InputEncoder"):
        monkeypatch.setattr(version_loader, name, noted(name, getattr(version_loader, name)))
    monkeypatch.setattr(SoftPrompt, "check_fits", noted("check_fits", SoftPrompt.check_fits))
    encoder = InputEncoder(byte_tokenizer(), Template())
    (first,) = golden_of(bench.model_dir, matrix(1))
    synthetic = first.model_copy(update={"text": "", "input_ids": golden_input_ids(encoder)[0]})
    await bench.load(bench.publish(1, (synthetic,)))
    assert used.keys() == {"golden_input_ids", "InputEncoder", "check_fits"}
    assert threading.current_thread().name not in used.values()
    assert all(thread.startswith("prompt store fetch") for thread in used.values())


@pytest.mark.parametrize("ended_by", ["stop", "cancel"])
async def test_a_cancelled_replay_raises_instead_of_giving_nothing(
    bench: Bench, ended_by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, released = threading.Event(), threading.Event()
    step = bench.engine.engine.step

    def held() -> Any:
        entered.set()
        released.wait()
        return step()

    monkeypatch.setattr(bench.engine.engine, "step", held)
    replay = asyncio.create_task(bench.engine.top_logprobs(None, tuple(range(20, 120)), 4))
    await until(entered.is_set)
    sent, send = asyncio.Event(), bench.engine._send

    def noticed(work: Any) -> None:
        send(work)
        sent.set()

    monkeypatch.setattr(bench.engine, "_send", noticed)
    stopping = asyncio.create_task(bench.engine.stop()) if ended_by == "stop" else None
    if stopping is None:
        (name,) = bench.engine._streams
        bench.engine._send(lambda: bench.engine._cancel(name))
    await sent.wait()
    released.set()
    with pytest.raises(Unavailable):
        await replay
    if stopping is not None:
        await stopping


@pytest.mark.parametrize("error", [PreconditionFailed("no"), InvalidInput.of("input_ids", "no"), DamagedBlob("no")])
async def test_what_can_never_serve_is_quarantined_at_its_first_attempt(
    bench: Bench, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*args: object, **kwargs: object) -> Any:
        raise error

    monkeypatch.setattr(bench.engine, "top_logprobs", refuse)
    assert await bench.load(bench.publish(1, golden_of(bench.model_dir, matrix(1)))) is None
    assert len(bench.reasons()) == 1
    assert "no" in bench.heartbeat.record().refused[0].reason


@pytest.mark.parametrize("where", ["load_prefix", "top_logprobs"])
async def test_a_fault_that_comes_again_and_again_ends_in_quarantine_and_holds_up_no_other(
    bench: Bench, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, attempts = getattr(bench.engine, where), 0
    bad = bench.publish(1, golden_of(bench.model_dir, matrix(1)))

    async def faulty(prefix_id: str, *args: Any) -> Any:
        nonlocal attempts
        if not prefix_id.endswith(bad.digest):
            return await real(prefix_id, *args)
        attempts += 1
        raise TypeError("an architecture that wants something else")

    monkeypatch.setattr(bench.engine, where, faulty)
    good = bench.publish(2, golden_of(bench.model_dir, matrix(2)), prompt="mood")
    await bench.watcher.start()
    watching = asyncio.create_task(bench.watcher.run())
    await until(bench.reasons)
    assert bench.reasons() == [RefusalReason.FAULT]
    assert attempts == MAX_FAULTS
    assert [version.digest for version in bench.heartbeat.record().loaded] == [good.digest]
    (refused,) = bench.heartbeat.record().refused
    assert "TypeError" in refused.reason
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)


async def test_a_version_whose_replays_fail_in_the_engine_is_quarantined_while_the_engine_serves_others(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = bench.publish(1, golden_of(bench.model_dir, matrix(1)))
    run = bench.engine.engine.runner.run

    def flaky(plan: Any, prefixes: Any) -> torch.Tensor:
        if any(chunk.sequence.prefix_id for chunk in plan.chunks):
            raise RuntimeError("no kernel for this shape")
        return run(plan, prefixes)

    monkeypatch.setattr(bench.engine.engine.runner, "run", flaky)
    for _ in range(MAX_FAILED_REPLAYS - 1):
        assert isinstance(await bench.load(record), Unavailable)
        await bench.engine.top_logprobs(None, (5, 6), 1)
    assert await bench.load(record) is None
    assert bench.reasons() == [RefusalReason.FAULT]


async def test_an_engine_that_dies_says_nothing_about_the_version(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = bench.publish(1, golden_of(bench.model_dir, matrix(1)))

    def fail(*args: object) -> torch.Tensor:
        raise RuntimeError("the device is gone")

    monkeypatch.setattr(bench.engine.engine.runner, "run", fail)
    for _ in range(2 * MAX_FAILED_REPLAYS):
        assert isinstance(await bench.load(record), Unavailable)
    assert bench.reasons() == []


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 1 byte")]
)
async def test_memory_that_is_short_now_is_tried_again(
    bench: Bench, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = bench.publish(1)
    with monkeypatch.context() as patched:

        async def refuse(*args: object) -> Any:
            raise error

        patched.setattr(bench.engine, "load_prefix", refuse)
        for _ in range(2 * MAX_FAULTS):
            assert isinstance(await bench.load(record), Unavailable)
    assert await bench.load(record) is None
    assert bench.registry.num_loaded == 1


async def test_blobs_that_hang_hold_their_places_once_and_others_load(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    hanging = [bench.publish(seed, prompt=f"hanging-{seed}") for seed in range(2, 6)]
    sound = bench.publish(1, prompt="sound")
    released, fetch, asked = threading.Event(), bench.store.fetch, list[str]()
    monkeypatch.setattr(
        bench.loader, "_seconds_to_fetch", lambda record: 60 if record == sound or released.is_set() else 0.2
    )

    def held(digest: str) -> bytes:
        asked.append(digest)
        if digest != sound.digest:
            released.wait()
        return fetch(digest)

    monkeypatch.setattr(bench.store, "fetch", held)
    loads = [asyncio.create_task(bench.load(record)) for record in hanging]
    await until(lambda: len(asked) == len(hanging))
    assert await bench.load(sound) is None
    assert {type(found) for found in await asyncio.gather(*loads)} == {Unavailable}
    for record in hanging:
        assert isinstance(await bench.load(record), Unavailable)
    assert len(asked) == len(hanging) + 1, "no second thread waits for a blob that hangs"
    released.set()
    await until(lambda: not bench.loader._fetching)
    assert [await bench.load(record) for record in hanging] == [None] * len(hanging)


async def test_a_tenants_versions_do_not_queue_behind_all_of_another_tenants(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    greedy = [bench.publish(seed, prompt=f"greedy-{seed}") for seed in range(2, 12)]
    modest, released, order = bench.publish(1, prompt="modest"), asyncio.Event(), list[str]()
    load = bench.loader.load

    async def held(record: VersionRecord) -> ServableVersion:
        order.append(record.prompt)
        if record.prompt != "modest":
            await released.wait()
        return await load(record)

    monkeypatch.setattr(bench.loader, "load", held)
    with calling(Caller("a", frozenset(), group=Tenant("greedy"))):
        loads = [asyncio.create_task(bench.load(record)) for record in greedy]
    await until(lambda: len(order) == 3)
    with calling(Caller("b", frozenset(), group=Tenant("modest"))):
        assert await bench.load(modest) is None
    released.set()
    assert await asyncio.gather(*loads) == [None] * len(greedy)
