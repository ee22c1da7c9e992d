"""The trainer as a process: builds its parts, starts and stops them in order.

Start: gRPC (`live` is SERVING, all else NOT_SERVING), job database and prompt store, base models, worker pool and job
manager, then SERVING. Stop: NOT_SERVING, running calls finish, watches end, running jobs are checkpointed and queued
again, then everything is closed.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import random
import signal
import threading
import time
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from typing import cast

import grpc
from prometheus_client import CollectorRegistry
from prompttuning.v1 import prompts_pb2, prompts_pb2_grpc, tuning_pb2, tuning_pb2_grpc

from shared.errors import SoftPromptError
from shared.process.daemon_thread import close_within, on_daemon_thread
from shared.process.service import announce, retract
from shared.rpc.late import LateServices
from shared.rpc.metrics import PoolCollector, RpcMetrics, serve_metrics
from shared.rpc.server import RpcServer
from shared.security.page_tokens import PageTokens
from shared.store import PromptStore, open_store
from shared.store.maintenance import MaintenancePolicy
from shared.tracing import Tracing, tracing_of
from trainer_service.base_models import BaseModels
from trainer_service.cluster.interface import WorkerPool
from trainer_service.config import TrainerSettings
from trainer_service.database.service_keys import page_token_key
from trainer_service.datasets.ledger import DatasetLedger
from trainer_service.datasets.roots import DatasetRoots
from trainer_service.datasets.store import DatasetStore
from trainer_service.datasets.tenant_datasets import TenantDatasets
from trainer_service.datasets.upload import UploadLimits
from trainer_service.dispatch.manager import JobManager, files_for
from trainer_service.job_audit import audit_end
from trainer_service.jobs.admission import SpecAdmission
from trainer_service.jobs.memory_estimate import estimated_bytes
from trainer_service.jobs.model import EffectiveSpec
from trainer_service.jobs.reports import JobReports
from trainer_service.jobs.sources import Sources
from trainer_service.jobs.store.job_store import JobStore
from trainer_service.jobs.submission import JobSubmission
from trainer_service.maintenance.prompt_store import StoreMaintenance
from trainer_service.maintenance.retention import Retention
from trainer_service.maintenance.retention_rounds import RetentionRounds
from trainer_service.maintenance.storage_usage import StorageMeter
from trainer_service.metrics import TrainerMetrics
from trainer_service.pools import TrainerPools
from trainer_service.prompts import Prompts
from trainer_service.proof import Prover
from trainer_service.service_info import ServiceInfo, TuningLimits
from trainer_service.servicers.prompts import PromptServicer
from trainer_service.servicers.tuning import TuningServicer
from trainer_service.usage.budgets import Budgets
from trainer_service.usage.ledger import UsageLedger
from trainer_service.usage.lists import UsageLists
from trainer_service.usage.rounds import UsageRounds
from trainer_service.webhooks.deliveries import Deliveries
from trainer_service.webhooks.endpoints import Endpoints
from trainer_service.webhooks.events import event_of_budget
from trainer_service.webhooks.outbox import Outbox

log = logging.getLogger(__name__)

SERVICE_NAMES = (
    tuning_pb2.DESCRIPTOR.services_by_name["TuningService"].full_name,
    prompts_pb2.DESCRIPTOR.services_by_name["PromptService"].full_name,
)
WATCHES = frozenset({f"/{SERVICE_NAMES[0]}/WatchTuningJob", f"/{SERVICE_NAMES[1]}/WatchPrompts"})
PROMPT_STORE, JOB_DATABASE, BASE_MODELS = "prompt_store", "job_database", "base_models"
"""Names of external systems in health, metrics and logs."""
CHECK_SECONDS = 5.0
"""Mean time between two health checks."""
LOOK_SECONDS = 10.0
"""Mean time between two attempts to read unavailable base models."""
_CALLS_SHARE = 0.4
"""Share of the grace time for running calls; the rest is for checkpoints."""

_CLOSE_SECONDS = 2.0
_FINISH_BUILDING_SECONDS = 2.0
"""How long a stop waits for a running migration to finish."""

PoolMaker = Callable[[TrainerSettings], WorkerPool]


@dataclass(frozen=True)
class Front:
    """The parts that answer from the start even if external systems are unavailable: gRPC with health, and metrics."""

    rpc: RpcServer
    services: LateServices
    tracing: Tracing
    registry: CollectorRegistry
    metrics: TrainerMetrics
    pools: TrainerPools

    @classmethod
    def of(cls, settings: TrainerSettings) -> Front:
        """Builds the parts; starts nothing."""
        registry = CollectorRegistry()
        metrics = TrainerMetrics(registry, [source.id for source in settings.sources], audit_end)
        tracing = tracing_of("softprompt-trainer", settings.otlp_endpoint)
        pools = TrainerPools.of(settings.store_timeout_seconds, settings.database_timeout_seconds)
        registry.register(PoolCollector(pools.all))
        rpc = RpcServer(
            settings, SERVICE_NAMES, RpcMetrics(registry), WATCHES, tracing, systems=(PROMPT_STORE, JOB_DATABASE)
        )
        services = LateServices(SERVICE_NAMES, "the trainer is starting; try again")
        rpc.grpc_server.add_generic_rpc_handlers((services,))
        return cls(rpc, services, tracing, registry, metrics, pools)


@dataclass(frozen=True)
class Trainer:
    """All parts of one running trainer."""

    settings: TrainerSettings
    front: Front
    models: BaseModels
    store: PromptStore
    maintenance: StoreMaintenance
    retention: RetentionRounds
    storage: StorageMeter
    job_store: JobStore
    jobs: JobManager
    webhooks: Deliveries
    usage: UsageRounds


async def build(settings: TrainerSettings, front: Front, make_pool: PoolMaker) -> Trainer:
    """Builds the parts behind the front. Waits while the database or the prompt store is unavailable."""
    rpc, metrics, pools = front.rpc, front.metrics, front.pools
    endpoints = Endpoints(settings.webhooks_file)
    job_store = await pools.job_database.open(
        lambda: JobStore.open(settings.resolved_database_url, settings.database_timeout_seconds)
    )
    try:
        store = await pools.prompt_store.open(
            lambda: open_store(settings.resolved_store_url, settings.store_timeout_seconds)
        )
    except BaseException:
        job_store.close()
        raise
    metrics.set_store_reachable(True)
    maintenance = StoreMaintenance(
        store, MaintenancePolicy.of(settings), settings.store_maintenance_seconds, metrics.maintained
    )
    models = BaseModels(settings.sources)
    datasets = DatasetStore(settings.datasets_dir, settings, DatasetRoots(settings.dataset_roots), pools)
    limits = TuningLimits(
        settings.max_virtual_tokens, settings.max_queued_jobs, settings.max_runtime_seconds, settings.max_length
    )
    admission = SpecAdmission(models, datasets, Sources(store, job_store), limits, pools, on_gpu=settings.expects_gpu)
    files = files_for(job_store, settings.checkpoints_dir)
    ledger = DatasetLedger(job_store.database)
    usage = UsageLedger(job_store.database)
    job_store.on_move.append(usage.job_moved)
    budgets = Budgets(usage)

    def estimate_memory(spec: EffectiveSpec) -> int | None:
        shape, entry = models.get(spec.base_model.id).shape, settings.models.entries.get(spec.base_model.id)
        if shape is None:
            return None
        on_gpu, dtype = settings.expects_gpu, settings.dtype
        if entry is not None:
            on_gpu = on_gpu if entry.workers.num_gpus is None else entry.workers.num_gpus > 0
            dtype = entry.dtype or dtype
        return estimated_bytes(shape, spec, on_gpu=on_gpu, dtype=dtype)

    jobs = JobManager(
        job_store,
        admission,
        datasets,
        store,
        make_pool(settings),
        settings.jobs,
        files=files,
        observer=metrics,
        ledger=ledger,
        pools=pools,
        tenants=rpc.guard.tenants,
        models=settings.models,
        check_budgets=budgets.check,
        estimate_memory=estimate_memory,
    )
    outbox = Outbox(job_store.database, lambda: endpoints.current)
    if endpoints.is_configured:
        job_store.on_move.append(outbox.job_moved)
    usage_rounds = UsageRounds(
        usage,
        budgets,
        store.backend,
        pools.usage,
        rpc.guard.tenants,
        metrics,
        settings.usage_seconds,
        settings.usage_days,
        lambda statuses: outbox.add(map(event_of_budget, statuses)),
    )
    webhooks = Deliveries(outbox, endpoints, store, pools, metrics, max_attempts=settings.webhook_attempts)
    info = ServiceInfo(models, limits, UploadLimits.of(settings))
    owned = TenantDatasets(datasets, ledger, settings.max_dataset_bytes_per_tenant)
    tokens = PageTokens(await pools.job_database.open(lambda: page_token_key(job_store.database)))
    beat_seconds = settings.watch_heartbeat_seconds
    submission, reports = JobSubmission(owned, jobs), JobReports(job_store, pools)
    tuning = TuningServicer(
        jobs,
        reports,
        submission,
        owned,
        info,
        webhooks,
        UsageLists(usage, budgets, rpc.guard.tenants, tokens, pools.usage),
        tokens,
        pools.requests,
        rpc.draining,
        beat_seconds,
    )
    prompts = Prompts(store, models, Prover(settings.max_proof_model_bytes, settings.proof_seconds), pools)
    server = cast("grpc.aio.Server", front.services)
    tuning_pb2_grpc.add_TuningServiceServicer_to_server(tuning, server)
    prompts_pb2_grpc.add_PromptServiceServicer_to_server(
        PromptServicer(prompts, tokens, rpc.draining, beat_seconds), server
    )
    rounds = Retention(job_store.database, files, ledger, datasets, settings)
    retention = RetentionRounds(rounds, rpc.guard.tenants, settings.retention_seconds, metrics.retained)
    storage = StorageMeter(settings.data_dir, datasets, files, job_store.database, metrics.set_storage)
    return Trainer(
        settings, front, models, store, maintenance, retention, storage, job_store, jobs, webhooks, usage_rounds
    )


async def serve(settings: TrainerSettings, stop: asyncio.Event, make_pool: PoolMaker) -> None:
    """Runs until `stop` is set, then drains. Raises errors that prevent the service from starting."""
    retract(settings)
    front = Front.of(settings)
    # Before gRPC starts, because a running gRPC server would have to be drained if this fails.
    metrics_server = serve_metrics(front.registry, settings.host, settings.metrics_port)
    port = await front.rpc.start()
    log.info("listening", extra={"fields": {"port": port, "metrics_port": metrics_server.port}})
    building = asyncio.create_task(build(settings, front, make_pool))

    async def run() -> None:
        await _run(await asyncio.shield(building), port, metrics_server.port)

    running = asyncio.create_task(run())
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({running, stopping}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        running.cancel()
        stopping.cancel()
        await asyncio.wait({running, stopping, building}, timeout=_FINISH_BUILDING_SECONDS)
        building.cancel()
        await asyncio.wait({running, stopping, building})
        is_built = not building.cancelled() and building.exception() is None
        await _drain(settings, front, building.result() if is_built else None)
        await close_within(_CLOSE_SECONDS, metrics_server.close, "metrics")
    if not running.cancelled():
        running.result()


async def _run(trainer: Trainer, port: int, metrics_port: int) -> None:
    """Becomes ready, then runs the background tasks. Ends only by an error or by cancellation."""
    await on_daemon_thread(trainer.models.load, "load-base-models")
    await trainer.jobs.start()
    _restore_signal_handlers()
    _freeze_modules()
    await trainer.front.rpc.set_serving(*health_of(await _unavailable(trainer)))
    announce(trainer.settings, port, metrics_port, trainer.front.rpc.health_port)
    async with asyncio.TaskGroup() as group:
        group.create_task(trainer.maintenance.run(), name="store maintenance")
        group.create_task(trainer.retention.run(), name="retention")
        group.create_task(trainer.storage.run(), name="storage usage")
        group.create_task(trainer.webhooks.run(), name="webhooks")
        group.create_task(trainer.usage.run(), name="usage")
        group.create_task(_report_health(trainer), name="health")
        group.create_task(_load_models(trainer.models), name="base models")


async def _load_models(models: BaseModels) -> None:
    """Verifies base models and reads unavailable ones until all are available, without a time limit for hashing."""
    await on_daemon_thread(models.verify, "verify-base-models")
    while models.unavailable:
        await asyncio.sleep(LOOK_SECONDS * random.uniform(0.5, 1.5))
        await on_daemon_thread(models.load, "load-base-models")
        await on_daemon_thread(models.verify, "verify-base-models")


async def _report_health(trainer: Trainer) -> None:
    while True:
        await trainer.front.rpc.set_serving(*health_of(await _unavailable(trainer)))
        await asyncio.sleep(CHECK_SECONDS * random.uniform(0.8, 1.2))


def _freeze_modules() -> None:
    """Excludes the objects that exist now from garbage collection.

    A full collection stops every thread, including the event loop's. With the modules of Ray and torch, which live as
    long as the process, each took half a second while a large dataset was parsed.
    """
    gc.collect()
    gc.freeze()


def _restore_signal_handlers() -> None:
    """Installs this process's signal handlers again: Ray's native library replaces them when it starts, and its handler
    for SIGTERM aborts the process after three seconds.
    """
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.getsignal(number))
            signal.siginterrupt(number, False)


def health_of(unavailable: Collection[str]) -> tuple[bool, dict[str, bool]]:
    """Whether the service is ready, and the health of its parts by name. `unavailable`: names of external systems.

    The service is ready only if the job database answers, so a trainer that can't reach it gets no new connections, and
    if it has a base model. Connected clients follow the status of "", which is healthy while the database or the store
    answers, and use what still works. Without the prompt store, jobs continue to train and wait to be published.
    """
    database, store = JOB_DATABASE not in unavailable, PROMPT_STORE not in unavailable
    tuning, prompts = SERVICE_NAMES
    parts = {tuning: database, prompts: store, JOB_DATABASE: database, PROMPT_STORE: store}
    return database and BASE_MODELS not in unavailable, {"": database or store, **parts}


async def _unavailable(trainer: Trainer) -> frozenset[str]:
    """The external systems that don't answer now, checked concurrently in separate threads."""
    metrics, pools = trainer.front.metrics, trainer.front.pools

    async def store() -> None:
        await pools.prompt_store_health.call(trainer.store.refresh)

    async def database() -> None:
        metrics.set_job_counts(await pools.job_database_health.call(trainer.job_store.counts))
        metrics.set_oldest_queued(
            await pools.job_database_health.call(trainer.job_store.oldest_queued_seconds, time.time())
        )

    errors = dict(
        zip((PROMPT_STORE, JOB_DATABASE), await asyncio.gather(_error_of(store), _error_of(database)), strict=True)
    )
    metrics.set_store_reachable(errors[PROMPT_STORE] is None)
    metrics.set_database_reachable(errors[JOB_DATABASE] is None)
    for system, error in errors.items():
        if error is not None:
            fields = {"system": system, "why": error.message}
            log.warning("an external system does not answer", extra={"fields": fields})
    metrics.set_base_models(trainer.models.states())
    none = {BASE_MODELS} if not trainer.models.infos else set()
    return frozenset(none | {system for system, error in errors.items() if error is not None})


async def _error_of(work: Callable[[], Awaitable[None]]) -> SoftPromptError | None:
    try:
        await work()
    except SoftPromptError as error:
        return error
    return None


async def _drain(settings: TrainerSettings, front: Front, trainer: Trainer | None) -> None:
    begun = time.monotonic()
    retract(settings)
    await front.rpc.drain(settings.grace_seconds * _CALLS_SHARE)
    if trainer is not None:
        await trainer.jobs.drain(max(1.0, settings.grace_seconds - (time.monotonic() - begun)))
        trainer.store.close()
    front.pools.close()
    await close_within(_CLOSE_SECONDS, front.tracing.close, "tracing")
    log.info("drained", extra={"fields": {"seconds": round(time.monotonic() - begun, 3)}})
