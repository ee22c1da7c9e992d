"""One life of the whole system, from a seed: faults and requests, then quiet, then the checker's judgement."""

from __future__ import annotations

import asyncio
import gc
import logging
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import select

from shared.invariants import num_broken
from tests.simulation.bugs import bug
from tests.simulation.checker import check, edges
from tests.simulation.clients import TENANTS, Client
from tests.simulation.database import SimulatedDatabase
from tests.simulation.faults import Faults
from tests.simulation.history import History
from tests.simulation.loop import Loop
from tests.simulation.machine import machine
from tests.simulation.upgrade import SCHEMAS, OldJob, make_old_database
from tests.simulation.world import CONFIG, World, loop_of
from trainer_service.database.schema import jobs
from trainer_service.jobs.states import JobState

BUSY_SECONDS, QUIET_SECONDS = 120.0, 240.0
"""Faults happen in the first part; within the second part, everything must have healed."""


MAX_TASKS = 20
"""Tasks of one process when nothing is left to do: each life makes hundreds of requests, and none may leave one."""
_STATES = select(jobs.c.id, jobs.c.state)


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
        database, old_jobs = _database_for(seed)
        world = World(seed, database, is_upgrade=bool(old_jobs))
        parts.callback(_end, loop)
        parts.enter_context(machine(seed, loop, world.call_fault))
        parts.enter_context(bug(plan.bug))
        gc.disable()
        parts.callback(gc.enable)
        asyncio.set_event_loop(loop)
        faults = Faults(world, plan.without)
        problems = loop.run_until_complete(_live(world, faults, plan, old_jobs))
        counts = Counter(faults.counts)
        for network in (world.storage_faults, world.database_faults, world.network_faults):
            counts.update({f"{kind} ": number for kind, number in network.counts.items()})
        took = time.perf_counter() - begun
        return Outcome(seed, problems, world.history, loop.now, took, counts, faults.meetings, edges(world))


async def _live(world: World, faults: Faults, plan: Plan, old_jobs: Sequence[OldJob]) -> list[str]:
    broken_before = num_broken()
    for server in world.servers:
        server.start()
    clients = world.clients = [Client(world, tenant) for tenant in TENANTS[: plan.num_tenants]]
    for job in old_jobs:
        clients[0].adopt(job.id, job.prompt)
    async with asyncio.TaskGroup() as group:
        for client in clients:
            group.create_task(client.run(plan.busy_seconds))
        group.create_task(faults.run(plan.busy_seconds))
    await asyncio.gather(faults.strike_jobs(), *(client.finish() for client in clients))
    ill = await _healing(world)
    await faults.strike_last()
    ill += await _healing(world)
    for invariant, times in num_broken().items():
        if times > broken_before[invariant]:
            world.history.add("broken", invariant=invariant.value, times=times - broken_before[invariant])
    world.history.add("quiet")
    await asyncio.gather(*(client.generate_all(replica) for client in clients for replica in world.replicas))
    for router in world.routers:  # one call after another, so that no load but the version decides where it goes
        for client in clients:
            for prompt, alias in client.aliases:
                await client.generate_with(router, prompt, alias)
    await faults.strike_streams()
    return [f"after {QUIET_SECONDS:g} s, {what}" for what in ill] + check(world)


async def _healing(world: World) -> list[str]:
    """What is left to do after the time that healing may take."""
    deadline = asyncio.get_running_loop().time() + QUIET_SECONDS
    while (ill := _unhealed(world)) and asyncio.get_running_loop().time() < deadline:
        await asyncio.sleep(5)
    return ill


def _unhealed(world: World) -> list[str]:
    """What is left to do."""
    newest, watched = len(world.storage.commits), {event.job for event in world.history.of("watched")}
    created = [event.job for event in world.history.of("created")]
    with world.database.read() as connection:
        ended = {id for id, state in connection.execute(_STATES).all() if JobState(state).is_final}
    ill = [f"job {job} goes on" for job in created if job not in watched & ended]
    num_tasks = loop_of(world).num_tasks()
    tasks = [(server.name, num_tasks[server.node]) for server in world.servers]
    ill += [f"{name} has {number} tasks" for name, number in tasks if number > MAX_TASKS]
    for trainer in world.trainers:
        if trainer.ready and (busy := trainer.jobs._publisher.job_ids):
            ill.append(f"{trainer.name} publishes {sorted(busy)}")
        if trainer.ready and (number := len(trainer.jobs._dispatcher.workers)) > CONFIG.max_workers:
            ill.append(f"{trainer.name} has {number} workers")
    for replica in world.replicas:
        if not replica.ready:
            ill.append(f"{replica.name} is not ready")
        elif (revision := replica.registry.index.revision) != newest:
            ill.append(f"{replica.name} is at revision {revision} of {newest}")
        elif number := replica.registry.num_aliases_behind:
            ill.append(f"{number} aliases of {replica.name} are behind")
    for router in world.routers:
        if not router.ready:
            ill.append(f"{router.name} is not ready")
            continue
        links = router.routing.links()
        connected = {link.replica.id for link in links if link.rank == 0}
        if connected != {replica.id for replica in world.replicas} or not len(links) == len(router.channels) == 3:
            ill.append(f"{router.name} is connected to {sorted(connected)}, over {len(router.channels)} channels")
        if number := sum(link.in_flight for link in links):
            ill.append(f"{router.name} has {number} calls")
        if router.directory.revision != newest:
            ill.append(f"{router.name} is at revision {router.directory.revision} of {newest}")
    return ill


def _end(loop: Loop) -> None:
    """Forgets the tasks of the life without running their cleanup."""
    loop.set_exception_handler(lambda *_: None)
    loop.close()
    asyncio.set_event_loop(None)
    _FORGOTTEN.append(loop)


_FORGOTTEN: list[Loop] = []
"""Loops of earlier lives. Collecting their tasks would run the cleanup of killed processes."""
_DATABASES: list[SimulatedDatabase] = []
_DIRECTORIES: list[str] = []
_OLD: dict[str, tuple[str, Sequence[OldJob]]] = {}
"""File and jobs of the migrated database of each earlier schema."""


def _database_for(seed: int) -> tuple[SimulatedDatabase, Sequence[OldJob]]:
    """The database of all lives, empty or, for a quarter of the seeds, as an earlier build left it, with its jobs. To
    migrate one and compile its statements takes longer than a life.
    """
    if not _DATABASES:
        _DATABASES.append(SimulatedDatabase(_new_url()))
    [database] = _DATABASES
    if seed % 4 != 1:
        database.restore()
        return database, ()
    schema = SCHEMAS[seed // 4 % len(SCHEMAS)]
    if schema not in _OLD:
        url = _new_url()
        _OLD[schema] = url.removeprefix("sqlite:///"), make_old_database(url, schema)
    path, old_jobs = _OLD[schema]
    database.restore(path)
    return database, old_jobs


def _new_url() -> str:
    return f"sqlite:///{tempfile.mkdtemp(dir=_DIRECTORIES[-1])}/jobs.sqlite3"


@contextmanager
def databases() -> Iterator[None]:
    """In the block, this process and those that it forks can live lives. The databases go with the block."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as directory:
        _DIRECTORIES.append(directory)
        yield


def silence() -> None:
    """The product logs every fault that it survives."""
    logging.disable(logging.CRITICAL)
