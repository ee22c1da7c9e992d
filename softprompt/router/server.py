"""The router as a process. Start: gRPC (`live`), then the store, then SERVING once a replica is connected. Stop:
NOT_SERVING, running calls finish within the grace time.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from prometheus_client import CollectorRegistry

from shared.config import ConfigError
from shared.model.models_file import ModelsFile
from shared.process.call_pool import CallPool
from shared.process.daemon_thread import close_within
from shared.process.service import announce, retract
from shared.rpc.late import LateServices
from shared.rpc.metrics import PoolCollector, RpcMetrics, serve_metrics
from shared.rpc.server import RpcServer
from shared.store import open_store
from shared.tracing import tracing_of
from softprompt.client.channel import open_replica_channel
from softprompt.client.security import ClientSecurity
from softprompt.router.metrics import RouterMetrics
from softprompt.router.servicer import SERVICE_NAME, RouterServicer
from softprompt.router.settings import RouterSettings
from softprompt.routing.cold_starts import ColdStarts
from softprompt.routing.routing import Routing
from softprompt.routing.store import StoreDirectory

log = logging.getLogger(__name__)

_LOOK_SECONDS = 0.1
_FAREWELL_SECONDS = 2.0


async def serve(settings: RouterSettings, stop: asyncio.Event, security: ClientSecurity | None = None) -> None:
    """Run until `stop`, then drain. `security`: towards replicas; None: the environment's. Raises start errors."""
    retract(settings)
    try:
        models = ModelsFile(settings.models_file)
    except ConfigError as error:
        raise ConfigError(f"SOFTPROMPT_ROUTER_MODELS_FILE: {error}") from None
    # A token of the environment is ignored: with it, callers without one would act as the router.
    security = replace(security or ClientSecurity.from_environment(), token="", token_file="")
    registry = CollectorRegistry()
    metrics, tracing = RouterMetrics(registry), tracing_of("softprompt-router", settings.otlp_endpoint)
    rpc = RpcServer(settings, [SERVICE_NAME], RpcMetrics(registry), tracing=tracing)
    late = LateServices([SERVICE_NAME], "the router is starting: it waits for the prompt store")
    rpc.grpc_server.add_generic_rpc_handlers((late,))
    metrics_server = serve_metrics(registry, settings.host, settings.metrics_port)
    port = await rpc.start()
    log.info("listening", extra={"fields": {"port": port, "metrics_port": metrics_server.port}})
    ready = partial(announce, settings, port, metrics_server.port, rpc.health_port)

    def leaving() -> None:
        retract(settings)
        metrics.ready.set(0)

    try:
        await rpc.run_until(stop, _live(settings, models, security, registry, metrics, rpc, late, ready), leaving)
    finally:
        await close_within(_FAREWELL_SECONDS, metrics_server.close, "metrics")
        await close_within(_FAREWELL_SECONDS, tracing.close, "tracing")


async def _live(
    settings: RouterSettings,
    models: ModelsFile,
    security: ClientSecurity,
    registry: CollectorRegistry,
    metrics: RouterMetrics,
    rpc: RpcServer,
    late: LateServices,
    ready: Callable[[], None],
) -> None:
    """Follow the store and pass calls on. Ends by cancellation."""
    pool = CallPool("prompt_store", max_threads=2, timeout_seconds=settings.store_timeout_seconds)
    registry.register(PoolCollector([pool]))
    store = await pool.open(lambda: open_store(settings.store_url, settings.store_timeout_seconds))
    directory = StoreDirectory(store, settings.poll_seconds, pool)
    longest = partial(_longest_waits, settings, models)
    cold_starts = ColdStarts(longest, settings.max_waiting, rpc.draining.is_set, settings.max_waiting_bytes)
    metrics.waiting = cold_starts.waiting
    connect = partial(open_replica_channel, security=security)
    routing = Routing(directory, connect, settings.default_base_model, metrics.observe, cold_starts)
    has_read = asyncio.Event()

    def records_read() -> None:
        has_read.set()
        metrics.records_read(directory.revision, routing.links())

    servicer = RouterServicer(routing, bool(security.certificate_file), settings.max_request_bytes)
    late.add_generic_rpc_handlers((servicer.handler(),))
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(directory.run(records_read))
            await has_read.wait()
            group.create_task(_open_for_calls(routing, bool(cold_starts.base_models), metrics, rpc, ready))
    finally:
        await routing.close()


def _longest_waits(settings: RouterSettings, models: ModelsFile) -> dict[str, float]:
    """The longest wait for a replica, by id, of the base models that are scaled to zero."""
    on_demand = {id: entry.replicas for id, entry in models.entries.items() if entry.replicas.least == 0}
    return {id: replicas.launch_seconds or settings.wait_seconds for id, replicas in on_demand.items()}


async def _open_for_calls(
    routing: Routing, may_wait: bool, metrics: RouterMetrics, rpc: RpcServer, ready: Callable[[], None]
) -> None:
    """Report SERVING once a replica is connected, or at once if calls may wait. It stays SERVING without replicas."""
    log.info("waiting for a replica")
    while not may_wait and all(link.rank for link in routing.links()):
        await asyncio.sleep(_LOOK_SECONDS)
    await rpc.set_serving(True)
    metrics.ready.set(1)
    ready()
