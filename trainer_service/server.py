"""The trainer as a process: its parts, put together in one place, and the order in which they start and stop.

Start: job database and prompt store, then gRPC (it answers, NOT_SERVING), then base models, workers' pool and job manager, then SERVING.
Stop: NOT_SERVING, running calls finish, watches end, running jobs are checkpointed and queued again, then everything is closed.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from prometheus_client import CollectorRegistry
from prompttuning.v1 import prompts_pb2, prompts_pb2_grpc, tuning_pb2, tuning_pb2_grpc

from shared.errors import SoftPromptError, Unavailable
from shared.rpc.metrics import RpcMetrics, serve_metrics
from shared.rpc.server import RpcServer
from shared.service import announce, retract
from shared.store import PromptStore, open_store
from shared.tracing import Tracing, tracing_of
from trainer_service.base_models import BaseModels
from trainer_service.cluster.interface import WorkerPool
from trainer_service.config import TrainerSettings
from trainer_service.job_audit import JobAudit
from trainer_service.jobs.admission import SpecAdmission
from trainer_service.jobs.dataset_roots import DatasetRoots
from trainer_service.jobs.dataset_tidying import DatasetTidying
from trainer_service.jobs.datasets import DatasetStore
from trainer_service.jobs.intake import JobIntake
from trainer_service.jobs.manager import JobManager, files_for
from trainer_service.jobs.sources import Sources
from trainer_service.jobs.store import JobStore
from trainer_service.maintenance import StoreMaintenance
from trainer_service.metrics import TrainerMetrics
from trainer_service.prompts import Prompts
from trainer_service.proof import Prover
from trainer_service.service_info import ServiceInfo, TuningLimits
from trainer_service.servicers.prompts import PromptServicer
from trainer_service.servicers.tuning import TuningServicer

log = logging.getLogger(__name__)

SERVICE_NAMES = (
    tuning_pb2.DESCRIPTOR.services_by_name["TuningService"].full_name,
    prompts_pb2.DESCRIPTOR.services_by_name["PromptService"].full_name,
)
WATCHES = frozenset({f"/{SERVICE_NAMES[0]}/WatchTuningJob", f"/{SERVICE_NAMES[1]}/WatchPrompts"})
CHECK_SECONDS = 5.0
_CALLS_SHARE = 0.4
"""Of the grace time: for running calls; the rest is for checkpoints."""

_RETRY_SECONDS = 2.0
_DAY_SECONDS = 86_400.0

Opened = TypeVar("Opened")
PoolMaker = Callable[[TrainerSettings], WorkerPool]


@dataclass(frozen=True)
class Trainer:
    """All parts of one running trainer."""

    settings: TrainerSettings
    rpc: RpcServer
    tracing: Tracing
    registry: CollectorRegistry
    metrics: TrainerMetrics
    models: BaseModels
    store: PromptStore
    maintenance: StoreMaintenance
    tidying: DatasetTidying
    job_store: JobStore
    jobs: JobManager


async def build(settings: TrainerSettings, make_pool: PoolMaker) -> Trainer:
    """Put the parts together. Waits for the database and the prompt store if they are away."""
    registry = CollectorRegistry()
    metrics = TrainerMetrics(registry)
    tracing = tracing_of("softprompt-trainer", settings.otlp_endpoint)
    rpc = RpcServer(settings, SERVICE_NAMES, RpcMetrics(registry), WATCHES, tracing)
    job_store = await _insist(JobStore.open, settings.resolved_database_url)
    store = await _insist(open_store, settings.resolved_store_url)
    maintenance = StoreMaintenance(store, settings.maintenance, settings.store_maintenance_seconds, metrics)
    models = BaseModels(settings.sources)
    datasets = DatasetStore(settings.datasets_dir, settings.upload_limits, DatasetRoots(settings.dataset_roots))
    limits = TuningLimits(settings.max_virtual_tokens, settings.max_queued_jobs, settings.max_runtime_seconds)
    admission = SpecAdmission(models, datasets, Sources(store, job_store), limits)
    files = files_for(job_store, settings.checkpoints_dir)
    jobs = JobManager(job_store, admission, datasets, store, make_pool(settings), settings.jobs, files=files, observer=JobAudit(metrics))
    info = ServiceInfo(models, limits, settings.upload_limits)
    tuning = TuningServicer(jobs, JobIntake(datasets, jobs), datasets, info, rpc.draining)
    tuning_pb2_grpc.add_TuningServiceServicer_to_server(tuning, rpc.grpc_server)
    prompts = Prompts(store, models, Prover(settings.max_proof_model_bytes))
    prompts_pb2_grpc.add_PromptServiceServicer_to_server(PromptServicer(prompts, rpc.draining), rpc.grpc_server)
    tidying = DatasetTidying(datasets, job_store, settings.unused_dataset_days * _DAY_SECONDS)
    return Trainer(settings, rpc, tracing, registry, metrics, models, store, maintenance, tidying, job_store, jobs)


async def serve(settings: TrainerSettings, stop: asyncio.Event, make_pool: PoolMaker) -> None:
    """Run until `stop` is set, then drain. Raises what keeps the service from starting."""
    retract(settings)
    trainer = await build(settings, make_pool)
    port = await trainer.rpc.start()
    metrics_server = serve_metrics(trainer.registry, settings.host, settings.metrics_port)
    log.info("listening", extra={"fields": {"port": port, "metrics_port": metrics_server.port}})
    living = asyncio.create_task(_live(trainer, port, metrics_server.port))
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({living, stopping}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        living.cancel()
        stopping.cancel()
        await asyncio.wait({living, stopping})
        await _drain(trainer)
        await asyncio.to_thread(metrics_server.close)
    if not living.cancelled():
        living.result()


async def _live(trainer: Trainer, port: int, metrics_port: int) -> None:
    """Become ready, then keep saying how things are. Ends only by an error or by being cancelled."""
    await asyncio.to_thread(trainer.models.load)
    await trainer.jobs.start()
    _take_signals_back()
    await trainer.rpc.set_serving(True)
    announce(trainer.settings, port, metrics_port, trainer.rpc.health_port)
    async with asyncio.TaskGroup() as group:
        group.create_task(trainer.maintenance.run(), name="store maintenance")
        group.create_task(trainer.tidying.run(), name="dataset tidying")
        group.create_task(_keep_saying(trainer), name="health")


async def _keep_saying(trainer: Trainer) -> None:
    while True:
        await trainer.rpc.set_serving(await _can_serve(trainer))
        await asyncio.sleep(CHECK_SECONDS)


def _take_signals_back() -> None:
    """Ray's native library puts its own handlers before ours when it starts; its one for SIGTERM aborts the process after three seconds."""
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.getsignal(number))
            signal.siginterrupt(number, False)


async def _can_serve(trainer: Trainer) -> bool:
    """Without the job database nothing can be answered. Without the prompt store jobs train on, and wait to be published."""
    try:
        await asyncio.to_thread(trainer.store.refresh)
        trainer.metrics.set_store_reachable(True)
    except SoftPromptError as error:
        trainer.metrics.set_store_reachable(False)
        log.warning("the prompt store can't be read: %s", error.message)
    try:
        trainer.metrics.set_job_counts(await asyncio.to_thread(trainer.job_store.counts))
    except SoftPromptError as error:
        log.warning("not serving, the job database can't be read: %s", error.message)
        return False
    return True


async def _drain(trainer: Trainer) -> None:
    begun = time.monotonic()
    retract(trainer.settings)
    grace_seconds = trainer.settings.grace_seconds
    await trainer.rpc.drain(grace_seconds * _CALLS_SHARE)
    await trainer.jobs.drain(max(1.0, grace_seconds - (time.monotonic() - begun)))
    await asyncio.to_thread(trainer.store.close)
    await asyncio.to_thread(trainer.tracing.close)
    log.info("drained", extra={"fields": {"seconds": round(time.monotonic() - begun, 3)}})


async def _insist(open_it: Callable[[str], Opened], url: str) -> Opened:
    """What `open_it` opens, tried again while the place is away: the service comes up when it comes back."""
    while True:
        try:
            return await asyncio.to_thread(open_it, url)
        except Unavailable as error:
            log.warning("not started yet: %s", error.message)
            await asyncio.sleep(_RETRY_SECONDS)
