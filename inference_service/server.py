"""The inference service as a process: builds its parts, and starts and stops them in order.

Start: gRPC (`live`; everything else NOT_SERVING) -> model and engine -> prompt store -> aliased versions loaded ->
warm-up -> SERVING. Stop: NOT_SERVING, running streams finish within the grace time or end as CANCELLED, then watcher,
heartbeat, engine and store end.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version as package_version

from prometheus_client import CollectorRegistry
from prompttuning.v1 import generation_pb2_grpc

from inference_service.config import InferenceSettings
from inference_service.engine.async_engine import AsyncEngine
from inference_service.engine.engine import Engine, load_engine
from inference_service.engine.guide.compiler import GuideCompiler
from inference_service.generation import GenerationService
from inference_service.guides import Guides
from inference_service.metrics import EngineMetrics, PromptMetrics, StateCollector, UsageCollector
from inference_service.prompts.first_loads import StartLimits
from inference_service.prompts.heartbeat import Heartbeat
from inference_service.prompts.load_queue import VersionLoads
from inference_service.prompts.pools import StorePools
from inference_service.prompts.registry import PromptRegistry
from inference_service.prompts.version import prompt_of_prefix
from inference_service.prompts.version_loader import VersionLoader
from inference_service.prompts.watcher import PromptWatcher
from inference_service.requests import RequestReader
from inference_service.servicer import SERVICE_NAME, Backend, GenerationServicer
from inference_service.token_texts import TokenTexts
from inference_service.usage import ReplicaUsage, UsageJournal
from shared.config import ConfigError
from shared.errors import InvalidInput, NotFound, PreconditionFailed, Unavailable
from shared.model import fingerprint
from shared.model.base_model import inspect, pick_device, resolve
from shared.process.daemon_thread import close_within, on_daemon_thread
from shared.process.service import announce, retract
from shared.process.threads import set_torch_threads
from shared.rpc.metrics import PoolCollector, RpcMetrics, serve_metrics
from shared.rpc.server import RpcServer
from shared.store import PromptStore, open_store
from shared.store.replicas import ReplicaDirectory
from shared.tracing import tracing_of
from shared.values.generation import ModelInfo

log = logging.getLogger(__name__)

HEALTH_SECONDS = 0.25
_FAREWELL_SECONDS = 2.0
_DEVICE = "SOFTPROMPT_INFERENCE_DEVICE (or replicas.num_gpus of the models file that the replica was made from)"


@dataclass(frozen=True)
class Replica:
    """The parts of one replica besides the gRPC server."""

    engine: AsyncEngine
    watcher: PromptWatcher
    heartbeat: Heartbeat
    loads: VersionLoads
    backend: Backend


def build(
    settings: InferenceSettings,
    engine: Engine,
    store: PromptStore,
    metrics: CollectorRegistry,
    pools: StorePools | None = None,
    num_tenants: int = 1,
    address: str = "",
    usage: ReplicaUsage | None = None,
) -> Replica:
    """Build a replica from a loaded model and an open store. Call it on the event loop.

    `address`: where routers reach it. `usage`: None records none.
    """
    pools = pools or StorePools(settings.store_timeout_seconds)
    base, max_length = engine.base, engine.config.max_length
    num_labels = settings.num_prompt_labels(num_tenants)
    engine_metrics = EngineMetrics(
        metrics,
        num_labels,
        lambda prefix_id: None if prefix_id is None else prompt_of_prefix(prefix_id),
        *(() if usage is None else (usage.record,)),
    )
    running = AsyncEngine(engine, engine_metrics)
    loader = VersionLoader(store, running, base, max_length, engine.config.limits.max_logprobs, pools.fetch)
    registry = PromptRegistry(loader.unload, settings.max_loaded_versions)
    directory, interval_seconds = ReplicaDirectory(store.backend), settings.heartbeat_seconds
    heartbeat = Heartbeat(
        directory,
        registry,
        settings.resolved_replica,
        base.info,
        interval_seconds,
        pools.heartbeat,
        address,
        lambda: ((stats := running.stats()).running, stats.waiting),
    )
    prompt_metrics = PromptMetrics(metrics, heartbeat.report_now)
    guides, texts = Guides(GuideCompiler(base), settings.guide_cache_bytes), TokenTexts(base.tokenizer)
    metrics.register(StateCollector(running.stats, registry, guides.stats))
    loads = VersionLoads(loader, registry, prompt_metrics)
    metrics.register(PoolCollector(pools.all))
    start = StartLimits(settings.start_versions, settings.start_seconds)
    watcher = PromptWatcher(
        store, registry, loads, prompt_metrics, settings.poll_seconds or store.poll_seconds, pools.watch, start
    )
    limits = settings.request_limits(max_length, engine.config.length_limit)
    service = GenerationService(
        base, running, registry, loads, watcher, limits, settings.default_sampling, guides, texts
    )
    model_info = ModelInfo(
        software_version=package_version("softprompt"),
        base_model=base.info,
        limits=limits.shown(engine.config.max_running, engine.config.max_waiting),
        default_sampling=settings.default_sampling,
        dtype=str(base.dtype).removeprefix("torch."),
        device=base.device.type,
        base_models=(base.info.id,),
    )
    reader = RequestReader(limits, base.info.vocab_size)
    checks = () if usage is None else (usage.check,)
    backend = Backend(service, reader, registry, model_info, texts, running.prefix_kv_bytes, *checks)
    return Replica(running, watcher, heartbeat, loads, backend)


async def serve(settings: InferenceSettings, stop: asyncio.Event) -> None:
    """Run until `stop` is set, then drain. Raises errors that prevent the start or end the service."""
    retract(settings)
    settings = settings.with_models_file()
    metrics = CollectorRegistry()
    tracing = tracing_of("softprompt-inference", settings.otlp_endpoint)
    rpc = RpcServer(settings, [SERVICE_NAME], RpcMetrics(metrics), tracing=tracing)
    servicer = GenerationServicer()
    generation_pb2_grpc.add_GenerationServiceServicer_to_server(servicer, rpc.grpc_server)
    rpc.relay(partial(generation_pb2_grpc.add_GenerationServiceServicer_to_server, servicer))
    metrics_server = serve_metrics(
        metrics, settings.host, settings.metrics_port
    )  # first: if it fails, no gRPC server has to be drained
    port = await rpc.start()
    log.info("listening", extra={"fields": {"port": port, "metrics_port": metrics_server.port}})
    ready = partial(announce, settings, port, metrics_server.port, rpc.health_port)
    life = _live(settings, metrics, rpc, servicer, settings.reachable_at(port), ready)
    try:
        await rpc.run_until(stop, life, partial(retract, settings))
    finally:
        await close_within(_FAREWELL_SECONDS, metrics_server.close, "metrics")
        await close_within(_FAREWELL_SECONDS, tracing.close, "tracing")


async def _live(
    settings: InferenceSettings,
    metrics: CollectorRegistry,
    rpc: RpcServer,
    servicer: GenerationServicer,
    address: str,
    ready: Callable[[], None],
) -> None:
    """Start the replica and run its tasks. Ends by cancellation, or with the error that ended the replica."""
    engine = await on_daemon_thread(lambda: _load(settings), "load-model")
    pools = StorePools(settings.store_timeout_seconds)
    store = await pools.watch.open(lambda: open_store(settings.store_url, settings.store_timeout_seconds))
    journal = UsageJournal(settings.usage_folder(store.id), engine.base.info.id)
    metrics.register(UsageCollector(lambda: journal.num_lost))
    usage = ReplicaUsage(journal, store.backend, pools.usage, settings.usage_seconds)
    replica = build(settings, engine, store, metrics, pools, len(rpc.guard.tenants()), address, usage)
    replica.engine.start()
    try:
        await usage.round()
        await replica.watcher.start()
        await replica.engine.top_logprobs(
            None, (0,), 1
        )  # the first step of a model allocates and compiles; no caller waits for that
        servicer.open(replica.backend)
        await rpc.set_serving(True)
        ready()
        async with asyncio.TaskGroup() as group:
            group.create_task(replica.watcher.run())
            group.create_task(replica.heartbeat.run())
            group.create_task(usage.run())
            group.create_task(servicer.margin.watch())
            group.create_task(_verify_model(settings))
            group.create_task(_watch_engine(replica.engine, rpc))
            group.create_task(_end_answers(replica.engine, rpc, settings.grace_seconds))
    finally:
        await replica.loads.close()
        await replica.engine.stop()
        await usage.close()
        replica.backend.service.close()
        pools.close()
        store.close()


async def _verify_model(settings: InferenceSettings) -> None:
    """Verify a fingerprint that came with the weights: hash them in the background while serving."""
    try:
        await on_daemon_thread(lambda: fingerprint.verify(resolve(settings.base_model)), "verify-model")
    except PreconditionFailed as error:
        raise ConfigError(f"SOFTPROMPT_INFERENCE_BASE_MODEL: {error.message}") from error


async def _watch_engine(engine: AsyncEngine, rpc: RpcServer) -> None:
    """Stop serving when the engine fails, then end the process so that its supervisor starts another one."""
    while engine.healthy:
        await asyncio.sleep(HEALTH_SECONDS)
    if not rpc.draining.is_set():
        await rpc.set_serving(False)
        raise Unavailable("the engine failed")


async def _end_answers(engine: AsyncEngine, rpc: RpcServer, grace_seconds: float) -> None:
    """Shortly before the grace time is over, end the running answers with the text so far."""
    await rpc.draining.wait()
    await asyncio.sleep(max(grace_seconds / 2, grace_seconds - _FAREWELL_SECONDS))
    await engine.stop()


def _load(settings: InferenceSettings) -> Engine:
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # unsuitable for logs
    started = time.monotonic()
    num_threads = set_torch_threads(settings.num_threads)
    try:
        pick_device(settings.device, _DEVICE)
    except InvalidInput as error:
        raise ConfigError(error.message) from error
    try:  # reads headers and digests, not the weights
        inspect(settings.base_model, id=settings.base_model_id)
    except (NotFound, PreconditionFailed, Unavailable) as error:
        raise ConfigError(f"SOFTPROMPT_INFERENCE_BASE_MODEL: {error.message}") from error
    engine = load_engine(settings.base_model, settings, id=settings.base_model_id, config=settings.engine)
    fields = {
        "base_model": engine.base.info.id,
        "dtype": str(engine.base.dtype),
        "device": str(engine.base.device),
        "max_length": engine.config.max_length,
        "num_threads": num_threads,
        "seconds": round(time.monotonic() - started, 2),
    }
    log.info("model loaded", extra={"fields": fields})
    return engine
