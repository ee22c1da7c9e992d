"""One life of the whole system, from a seed: faults and requests, then quiet, then the checker's judgement."""

from __future__ import annotations

import asyncio
import gc
import logging
import shutil
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from tests.simulation.bugs import bug
from tests.simulation.checker import check, edges
from tests.simulation.clients import PROMPTS, TENANTS, Client
from tests.simulation.faults import Faults
from tests.simulation.history import History
from tests.simulation.machine import Loop, machine
from tests.simulation.world import World
from trainer_service.database.database import Database
from trainer_service.jobs.store.job_store import JobStore

BUSY_SECONDS, QUIET_SECONDS = 120.0, 240.0
"""Faults happen in the first part; within the second part, everything must have healed."""


@dataclass
class Outcome:
    """What one seed led to."""

    seed: int
    problems: list[str]
    history: History
    virtual_seconds: float
    real_seconds: float
    faults: dict[str, int] = field(default_factory=dict)
    meetings: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Each kind of fault with each state of a job that it met."""
    edges: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Moves between states of jobs."""


@dataclass(frozen=True)
class Plan:
    """What a life is, beside its seed. `bug`: one of `bugs.BUGS`, put into the product meanwhile. Requests and faults
    happen for `busy_seconds`, by the first `num_tenants` tenants, without the faults of the kinds `without`.
    """

    bug: str = ""
    busy_seconds: float = BUSY_SECONDS
    num_tenants: int = len(TENANTS)
    without: tuple[str, ...] = ()


def live(seed: int, plan: Plan = Plan()) -> Outcome:
    """Runs the life of this seed."""
    begun, loop = time.perf_counter(), Loop()
    with ExitStack() as parts:
        directory = Path(parts.enter_context(tempfile.TemporaryDirectory(dir=_memory_directory())))
        world = World(seed, directory, _template())
        parts.callback(world.database.close)
        parts.callback(_end, loop)
        parts.enter_context(machine(seed, loop, world.call_fault))
        parts.enter_context(bug(plan.bug))
        gc.disable()
        parts.callback(gc.enable)
        asyncio.set_event_loop(loop)
        faults = Faults(world, plan.without)
        problems = loop.run_until_complete(_live(world, faults, plan))
        counts = {**faults.counts}
        for network in (world.storage_faults, world.database_faults, world.network_faults):
            counts.update({f"{kind} ": number for kind, number in network.counts.items()})
        took = time.perf_counter() - begun
        return Outcome(seed, problems, world.history, loop.now, took, counts, faults.meetings, edges(world))


async def _live(world: World, faults: Faults, plan: Plan) -> list[str]:
    for server in world.servers:
        server.start()
    clients = [Client(world, tenant) for tenant in TENANTS[: plan.num_tenants]]
    async with asyncio.TaskGroup() as group:
        for client in clients:
            group.create_task(client.run(plan.busy_seconds))
        group.create_task(faults.run(plan.busy_seconds))
    await asyncio.gather(*(client.resume_all() for client in clients))
    deadline = asyncio.get_running_loop().time() + QUIET_SECONDS
    while not _has_healed(world) and asyncio.get_running_loop().time() < deadline:
        await asyncio.sleep(5)
    world.history.add("quiet")
    for client in clients:
        for replica in world.replicas:
            for prompt in PROMPTS:
                for alias in ("default", "canary"):
                    await client.generate_with(replica, f"{client.tenant}-{prompt}", alias)
    return check(world)


def _has_healed(world: World) -> bool:
    """Whether nothing is left to do. The checker looks at the same again, and at much more."""
    store = JobStore(world.database)
    watched = {event.job for event in world.history.of("watched")}
    return (
        all(event.job in watched and store.get(event.job).state.is_final for event in world.history.of("created"))
        and all(replica.ready for replica in world.replicas)
        and all(replica.registry.index.revision == len(world.storage.commits) for replica in world.replicas)
        and not any(replica.registry.num_aliases_behind for replica in world.replicas)
    )


def _end(loop: Loop) -> None:
    """Forgets the tasks of the life without running their cleanup."""
    loop.set_exception_handler(lambda *_: None)
    loop.close()
    asyncio.set_event_loop(None)
    _FORGOTTEN.append(loop)


_FORGOTTEN: list[Loop] = []
"""Loops of earlier lives. Collecting their tasks would run the cleanup of killed processes."""
_TEMPLATES: list[Path] = []


def _memory_directory() -> str | None:
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


def _template() -> Path:
    """An empty job database; migrating one takes as long as a life."""
    if not _TEMPLATES:
        directory = Path(tempfile.mkdtemp(dir=_memory_directory()))
        Database(f"sqlite:///{directory / 'template.sqlite3'}").close()
        _TEMPLATES.append(directory / "template.sqlite3")
    return _TEMPLATES[0]


def forget_template() -> None:
    """Removes the file that all lives begin with."""
    for path in _TEMPLATES:
        shutil.rmtree(path.parent)
    _TEMPLATES.clear()


def silence() -> None:
    """The product logs every fault that it survives."""
    logging.disable(logging.CRITICAL)
