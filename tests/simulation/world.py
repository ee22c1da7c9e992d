"""The simulated processes of one life: trainers on one database, replicas and routers on one prompt store."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any, cast

from sqlalchemy import select

from shared.caller import Caller
from shared.errors import NotFound, Unavailable
from shared.names import parse_version_name
from shared.store.maintenance import MaintenancePolicy
from tests.simulation.database import SimulatedDatabase
from tests.simulation.history import History
from tests.simulation.loop import Loop, current_node, start_on
from tests.simulation.machine import EPOCH, Fate
from tests.simulation.routers import Router
from tests.simulation.serving import Replica, Server
from tests.simulation.storage import Storage, StorageFaults
from tests.simulation.upgrade import old_store
from tests.simulation.workers import SimulatedPool
from tests.trainer_service.builders import BASE_MODEL, effective_spec
from tests.trainer_service.job_service import AdmitAll
from trainer_service.base_models import KnownBaseModel
from trainer_service.database.schema import jobs
from trainer_service.dispatch.manager import JobManager
from trainer_service.imports import ImportRequest
from trainer_service.jobs.config import JobsConfig
from trainer_service.jobs.model import Job
from trainer_service.jobs.store.conditions import UNENDED
from trainer_service.jobs.store.files import DatabaseFiles
from trainer_service.jobs.store.job_store import JobStore
from trainer_service.maintenance.rounds import store_rounds
from trainer_service.pools import TrainerPools
from trainer_service.prompts import Prompts
from trainer_service.training.events import DatasetFile

LEASE_SECONDS = 20.0
CONFIG = JobsConfig(
    max_workers=2,
    max_jobs_per_worker=3,
    worker_idle_seconds=30,
    poll_seconds=2,
    heartbeat_seconds=10,
    launch_seconds=60,
    step_seconds=60,
    lease_seconds=LEASE_SECONDS,
    progress_seconds=3,
    tick_seconds=3,
    retry_max_seconds=10,
    max_infrastructure_failures=1000,
)
_UNENDED = select(jobs.c.state, jobs.c.trained).where(UNENDED).distinct()


class SharedStore(JobStore):
    """Behaves like one on PostgreSQL: several trainers share it, and it has one clock. The data are in SQLite."""

    is_shared = True

    def now(self) -> float:
        return EPOCH + asyncio.get_running_loop().time()

    def close(self) -> None:
        """The database outlives its clients."""


class ToyModels:
    """The base model of all toys, as imports see it. It makes no golden records."""

    infos = (BASE_MODEL,)

    def get(self, id: str, field: str) -> KnownBaseModel:
        return KnownBaseModel(BASE_MODEL, None, cast(Any, None))


class NamedDatasets:
    """A dataset's name is all that a toy job reads."""

    def file(self, name: str) -> DatasetFile:
        return DatasetFile("0" * 64, name.removeprefix("datasets/"), 1)


class Trainer(Server):
    """A trainer: the real job manager, prompts and maintenance; simulated workers."""

    def start(self) -> None:
        self.pool = SimulatedPool(self.name, self.world.rng)
        super().start()

    def kill(self) -> None:
        super().kill()
        self.pool.die()

    async def _boot(self) -> None:
        pools, world = TrainerPools(), self.world
        store = await self._prompt_store(pools.prompt_store)
        job_store = SharedStore(world.database)
        self.jobs = JobManager(
            job_store,
            AdmitAll(effective_spec()),
            NamedDatasets().file,
            store,
            self.pool,
            CONFIG,
            files=DatabaseFiles(world.database),
            pools=pools,
        )
        self.store, self.prompts = store, Prompts(store, cast(Any, ToyModels()), cast(Any, None), pools)
        await self.jobs.start()
        policy = MaintenancePolicy(keep_versions=3, blob_grace_seconds=700, keep_log_entries=8)
        self._maintenance = asyncio.create_task(store_rounds(store, policy, 20, lambda *_: None).run())
        self.ready = True

    async def resume_job(self, job_id: str) -> None:
        """What the servicer does."""
        await self.jobs.resume(job_id)

    async def get_job(self, job_id: str) -> Job:
        """What the servicer does."""
        return await self.jobs.get(job_id)

    async def watch_job(self, job_id: str, after: int) -> AsyncIterator[tuple[int, str]]:
        """The number of each event, with the job's new state or ""."""
        async for event in self.jobs.watch(job_id, after):
            yield event.number, event.payload.state.value if isinstance(event.payload, Job) else ""

    async def newest_blob(self, prompt: str) -> bytes:
        """The bytes of the prompt's newest version. Raises NotFound."""
        versions, _ = await self.prompts.versions(prompt, 1)
        if not versions:
            raise NotFound("version", prompt)
        return (await self.prompts.read(versions[0].name))[1]

    async def import_(self, request: ImportRequest, data: bytes) -> int:
        """What the servicer does. Returns the new version's number."""

        async def chunks() -> AsyncIterator[bytes]:
            yield data

        return parse_version_name((await self.prompts.import_(request, chunks())).name, "version")[1]

    async def drain(self) -> None:
        """Stops it in order."""
        if self.ready:
            self.ready = False
            self._maintenance.cancel()
            await asyncio.wait([start_on(self.node, self.jobs.drain(15))], timeout=30)
        self.kill()


class World:
    """Everything of one life. `rng` decides all that is not decided by the code under test."""

    def __init__(self, seed: int, database: SimulatedDatabase, *, is_upgrade: bool = False) -> None:
        """`is_upgrade`: the prompt store has a version of an earlier build."""
        self.rng = random.Random(seed)
        self.is_crowded = seed % 16 == 6
        """Whether two tenants have far more jobs than workers. All clocks are right then: shares are measured by those
        of the trainers.
        """
        self.history = History()
        self.storage = Storage(self.history, self.rng, is_directory=seed % 4 == 3)
        for key, data in old_store().items() if is_upgrade else ():
            self.storage.create(key, data)
        self.storage_faults, self.network_faults = StorageFaults(self.rng), StorageFaults(self.rng)
        self.database_faults = StorageFaults(self.rng)
        self.database = database
        self.failover_at = 0.0
        """When the database's standby takes over; what is not acknowledged by then may be lost."""
        self.trainers = [Trainer(self, f"trainer-{number}") for number in range(2)]
        self.replicas = [Replica(self, f"replica-{number}") for number in range(3)]
        self.routers = [Router(self, f"router-{number}") for number in range(2)]
        self.clients: list[Any] = []
        self.callers: dict[str, Caller] = {}
        """By token."""
        self.cuts: Counter[tuple[str, str]] = Counter()
        """Names of routers and replicas whose messages to each other wait."""

    @property
    def servers(self) -> list[Server]:
        """All of them."""
        return [*self.trainers, *self.replicas, *self.routers]

    def is_cut(self, router: Router, replica: Replica) -> bool:
        """Whether the network between them is down."""
        return self.cuts[router.name, replica.name] > 0

    def now(self) -> float:
        """The wall clock of its clients."""
        return EPOCH + asyncio.get_running_loop().time()

    def job_states(self) -> list[str]:
        """The states of the jobs that have not ended; a running one that is trained already is PUBLISHING."""
        with self.database.read() as connection:
            found = connection.execute(_UNENDED).all()
        return sorted("PUBLISHING" if row.trained and row.state == "RUNNING" else row.state for row in found)

    def call_fault(self, system: str, call: str) -> Fate:
        """What happens to a call to a blocking system (`machine.CallFault`)."""
        rng, faults, node = self.rng, self.database_faults, current_node()
        before, after = rng.uniform(0.0005, 0.005), 0.0
        if not system.startswith("job_"):
            return Fate(before)
        if node is not None and node.name in faults.cut_off:
            raise Unavailable("the job database can't be reached", system=system)
        if (left := self.failover_at - asyncio.get_running_loop().time()) > 0:
            # Synchronous replication: no client sees a commit that waits for the standby, which has it or has it not.
            return Fate(left, is_done=rng.random() < 0.5, is_answered=False)
        if not (faults.chance or faults.aim):
            return Fate(before)
        if faults.strikes("refused", 0.5):
            raise Unavailable("the job database is unavailable; try again", system=system)
        if faults.strikes("slow call"):
            before = rng.uniform(0.01, 10)
        if faults.strikes("slow answer"):
            after = rng.uniform(0.01, 40)
        return Fate(before, after, is_answered=not faults.strikes("lost answer", call=call))


def loop_of(world: World) -> Loop:
    """The loop that runs this world."""
    return cast(Loop, asyncio.get_running_loop())
