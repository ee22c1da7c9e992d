"""The trainer as a process: starts and stops its parts in order.

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

from shared.errors import SoftPromptError
from shared.process.daemon_thread import close_within, on_daemon_thread
from shared.process.service import announce, retract
from shared.rpc.metrics import serve_metrics
from trainer_service.base_models import BaseModels
from trainer_service.config import TrainerSettings
from trainer_service.parts import (
    BASE_MODELS,
    JOB_DATABASE,
    PROMPT_STORE,
    SERVICE_NAMES,
    Front,
    PoolMaker,
    Trainer,
    build,
)

log = logging.getLogger(__name__)

CHECK_SECONDS = 5.0
"""Mean time between two health checks."""
LOOK_SECONDS = 10.0
"""Mean time between two attempts to read unavailable base models."""
_CALLS_SHARE = 0.4
"""Share of the grace time for running calls; the rest is for checkpoints."""

_CLOSE_SECONDS = 2.0
_FINISH_BUILDING_SECONDS = 2.0
"""How long a stop waits for a running migration to finish."""


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
        await _run(settings, await asyncio.shield(building), port, metrics_server.port)

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


async def _run(settings: TrainerSettings, trainer: Trainer, port: int, metrics_port: int) -> None:
    """Becomes ready, then runs the background tasks. Ends only by an error or by cancellation."""
    await on_daemon_thread(trainer.models.load, "load-base-models")
    await trainer.jobs.start()
    _restore_signal_handlers()
    _freeze_modules()
    await trainer.front.rpc.set_serving(*health_of(await _unavailable(trainer)))
    announce(settings, port, metrics_port, trainer.front.rpc.health_port)
    async with asyncio.TaskGroup() as group:
        for name, run in trainer.background.items():
            group.create_task(run(), name=name)
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
        call, job_store = pools.job_database_health.call, trainer.job_store
        metrics.set_job_counts(await call(job_store.counts))
        metrics.set_oldest_queued(await call(job_store.oldest_queued_seconds, time.time()))

    answers = await asyncio.gather(_answers(PROMPT_STORE, store), _answers(JOB_DATABASE, database))
    metrics.set_store_reachable(answers[0])
    metrics.set_database_reachable(answers[1])
    metrics.set_base_models(trainer.models.states())
    works = dict(zip((PROMPT_STORE, JOB_DATABASE, BASE_MODELS), (*answers, bool(trainer.models.infos)), strict=True))
    return frozenset(system for system, does in works.items() if not does)


async def _answers(system: str, ask: Callable[[], Awaitable[None]]) -> bool:
    try:
        await ask()
    except SoftPromptError as error:
        fields = {"system": system, "why": error.message}
        log.warning("an external system does not answer", extra={"fields": fields})
        return False
    return True


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
