"""Builds the parts of one trainer from its settings; `server` starts and stops them."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, cast

import grpc
from prometheus_client import CollectorRegistry
from prompttuning.v1 import prompts_pb2, prompts_pb2_grpc, tuning_pb2, tuning_pb2_grpc

from shared.rpc.late import LateServices
from shared.rpc.metrics import PoolCollector, RpcMetrics
from shared.rpc.server import RpcServer
from shared.security import audit
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
from trainer_service.dispatch.manager import JobManager
from trainer_service.jobs.admission import SpecAdmission
from trainer_service.jobs.memory_estimate import estimated_bytes
from trainer_service.jobs.model import EffectiveSpec, Job
from trainer_service.jobs.reports import JobReports
from trainer_service.jobs.sources import Sources
from trainer_service.jobs.store.files import files_for
from trainer_service.jobs.store.job_store import JobStore
from trainer_service.jobs.submission import JobSubmission
from trainer_service.maintenance.retention import Retention
from trainer_service.maintenance.rounds import retention_rounds, store_rounds
from trainer_service.maintenance.storage_usage import StorageMeter
from trainer_service.metrics import TrainerMetrics
from trainer_service.pools import TrainerPools
from trainer_service.prompts import Prompts
from trainer_service.proof import Prover
from trainer_service.service_info import RequestLimits, ServiceInfo
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

SERVICE_NAMES = (
    tuning_pb2.DESCRIPTOR.services_by_name["TuningService"].full_name,
    prompts_pb2.DESCRIPTOR.services_by_name["PromptService"].full_name,
)
_WATCHES = frozenset({f"/{SERVICE_NAMES[0]}/WatchTuningJob", f"/{SERVICE_NAMES[1]}/WatchPrompts"})
PROMPT_STORE, JOB_DATABASE, BASE_MODELS = "prompt_store", "job_database", "base_models"
"""Names of external systems in health, metrics and logs."""

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
        metrics = TrainerMetrics(registry, [source.id for source in settings.sources], _audit_end)
        tracing = tracing_of("softprompt-trainer", settings.otlp_endpoint)
        pools = TrainerPools(settings.store_timeout_seconds, settings.database_timeout_seconds)
        registry.register(PoolCollector(pools.all))
        rpc = RpcServer(
            settings, SERVICE_NAMES, RpcMetrics(registry), _WATCHES, tracing, systems=(PROMPT_STORE, JOB_DATABASE)
        )
        services = LateServices(SERVICE_NAMES, "the trainer is starting; try again")
        rpc.grpc_server.add_generic_rpc_handlers((services,))
        return cls(rpc, services, tracing, registry, metrics, pools)


@dataclass(frozen=True)
class Trainer:
    """The parts behind the front that `server` calls."""

    front: Front
    models: BaseModels
    store: PromptStore
    job_store: JobStore
    jobs: JobManager
    background: Mapping[str, Callable[[], Coroutine[Any, Any, None]]]
    """What runs until it is cancelled, by name."""


async def build(settings: TrainerSettings, front: Front, make_pool: PoolMaker) -> Trainer:
    """Builds the parts behind the front. Waits while the database or the prompt store is unavailable."""
    rpc, metrics, pools, tenants = front.rpc, front.metrics, front.pools, front.rpc.guard.tenants
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
    database = job_store.database
    models = BaseModels(settings.sources)
    datasets = DatasetStore(settings.datasets_dir, settings, DatasetRoots(settings.dataset_roots), pools)
    ledger = DatasetLedger(database)
    limits = RequestLimits(
        settings.max_virtual_tokens, settings.max_queued_jobs, settings.max_runtime_seconds, settings.max_length
    )
    sources = Sources(store, job_store)
    admission = SpecAdmission(models, datasets.describe, sources, limits, pools, on_gpu=settings.trains_on_gpu)
    files = files_for(database, settings.checkpoints_dir)
    usage = UsageLedger(database)
    budgets, outbox = Budgets(usage), Outbox(database, lambda: endpoints.current)
    job_store.on_move.append(usage.job_moved)
    if endpoints.is_configured:
        job_store.on_move.append(outbox.job_moved)
    jobs = JobManager(
        job_store,
        admission,
        datasets.file,
        store,
        make_pool(settings),
        settings.jobs,
        files=files,
        observer=metrics,
        ledger=ledger,
        pools=pools,
        tenants=tenants,
        models=settings.models,
        check_budgets=budgets.check,
        estimate_memory=lambda spec: _estimated_memory(settings, models, spec),
    )
    tokens = PageTokens(await pools.job_database.open(lambda: page_token_key(database)))
    owned = TenantDatasets(datasets, ledger, settings.max_dataset_bytes_per_tenant)
    webhooks = Deliveries(outbox, endpoints, store, pools, metrics, max_attempts=settings.webhook_attempts)
    tuning = TuningServicer(
        jobs,
        JobReports(job_store, pools),
        JobSubmission(owned, jobs),
        owned,
        ServiceInfo(models, limits, UploadLimits.of(settings)),
        webhooks,
        UsageLists(usage, budgets, tenants, tokens, pools.usage),
        tokens,
        pools.requests,
        rpc.draining,
        settings.watch_heartbeat_seconds,
    )
    prover = Prover(settings.max_proof_model_bytes, settings.proof_seconds)
    prompts = PromptServicer(
        Prompts(store, models, prover, pools), tokens, rpc.draining, settings.watch_heartbeat_seconds
    )
    server = cast("grpc.aio.Server", front.services)
    tuning_pb2_grpc.add_TuningServiceServicer_to_server(tuning, server)
    prompts_pb2_grpc.add_PromptServiceServicer_to_server(prompts, server)
    policy, retention = MaintenancePolicy.of(settings), Retention(database, files, ledger, datasets, settings)
    usage_rounds = UsageRounds(
        usage,
        budgets,
        store.backend,
        pools.usage,
        tenants,
        metrics,
        settings.usage_seconds,
        settings.usage_days,
        lambda statuses: outbox.add(map(event_of_budget, statuses)),
    )
    background = {
        "store maintenance": store_rounds(store, policy, settings.store_maintenance_seconds, metrics.maintained).run,
        "retention": retention_rounds(retention, tenants, settings.retention_seconds, metrics.retained).run,
        "storage usage": StorageMeter(settings.data_dir, datasets, files, database, metrics.set_storage).run,
        "webhooks": webhooks.run,
        "usage": usage_rounds.run,
    }
    return Trainer(front, models, store, job_store, jobs, background)


def _estimated_memory(settings: TrainerSettings, models: BaseModels, spec: EffectiveSpec) -> int | None:
    """Bytes that a worker needs for a job; None if the base model's shape is unknown."""
    base_model = spec.base_model.id
    shape, entry = models.get(base_model).shape, settings.models.entries.get(base_model)
    if shape is None:
        return None
    dtype = settings.dtype if entry is None or entry.dtype is None else entry.dtype
    return estimated_bytes(shape, spec, on_gpu=settings.trains_on_gpu(base_model), dtype=dtype)


def _audit_end(job: Job) -> None:
    """Audits the end of a job. Most jobs end without a call: by success, an error, a deadline or the runtime limit."""
    error = {"error": job.error.code} if job.error else {}
    ended = {"caller": job.caller, "prompt": job.spec.prompt, "job": job.id, "state": job.state.value, **error}
    audit.record("end", "OK", ended)
