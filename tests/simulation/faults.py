"""What goes wrong: faults of random kinds at random times, until the life's quiet end."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Collection

from shared.store.layout import LOG
from tests.simulation.loop import start_on, wake
from tests.simulation.routers import KEEPALIVE_SECONDS
from tests.simulation.serving import TOKEN_SECONDS, Server
from tests.simulation.storage import StorageFaults
from tests.simulation.world import LEASE_SECONDS, Trainer, World

KINDS = (
    *("kill", "pause", "drain", "cut off", "worker", "bad storage", "bad database", "bad network", "clock"),
    *("failover", "full disk", "power cut", "partition", "slow replica"),
)
_PATIENCE_SECONDS = 20.0
"""How long a fault waits for its moment."""


class Faults:
    """Harms a world until a given time; then repairs everything. Faults of the kinds `without` do not happen."""

    def __init__(self, world: World, without: Collection[str] = ()) -> None:
        self._world, self._rng = world, world.rng
        self._without = {*without, *([] if world.storage.disk else ["power cut"])}
        self._without |= {"clock"} if world.is_crowded else set()
        self.counts: Counter[str] = Counter()
        self.meetings: Counter[tuple[str, str]] = Counter()
        """Each kind of fault with each state that a job was in when it struck."""
        self._running: set[asyncio.Task[None]] = set()
        self._broken: set[str] = set()
        """Servers that a fault has at the moment."""

    async def run(self, until: float) -> None:
        """Harms until `until`, then waits until everything is repaired."""
        harms = (
            *(self._kill, self._pause, self._drain, self._cut_off, self._harm_worker),
            lambda: self._bad(self._world.storage_faults, 0.3),
            lambda: self._bad(self._world.database_faults, 0.3),
            lambda: self._bad(self._world.network_faults, 0.3),
            *(self._move_clock, self._fail_over, self._fill_disk, self._cut_power, self._part, self._slow_down),
        )
        acts = dict(zip(KINDS, harms, strict=True))
        kinds = [*KINDS, *["power cut"] * (2 if self._world.storage.disk else 0)]  # only a quarter of the lives has it
        while asyncio.get_running_loop().time() < until:
            await asyncio.sleep(self._rng.uniform(0.5, 15))
            kind = self._rng.choice(kinds)
            if kind in self._without:
                continue
            self.counts[kind] += 1
            self.meetings.update((kind, state) for state in self._world.job_states())
            task = asyncio.create_task(acts[kind]())
            self._running.add(task)
            task.add_done_callback(self._running.discard)
        while self._running:
            await asyncio.wait(list(self._running))

    async def strike_jobs(self) -> None:
        """Half of the answers to commits are lost, and the database gets bad, or half of the answers to some kinds of
        writes are lost. No trainer starts again after this, which would hide what it forgot.
        """
        storage, faults = self._world.storage_faults, self._world.database_faults
        storage.aim = "" if "bad storage" in self._without else LOG
        if "bad database" not in self._without:
            is_bad = self._rng.random() < 0.5
            await (self._bad(faults, 0.3) if is_bad else self._lose_writes())
        storage.aim = faults.aim = ""

    async def strike_streams(self) -> None:
        """A replica dies while routers pass calls on to it. Only those may fail that have had a message."""
        world = self._world
        world.history.add("failing")
        streams = [client.generate_all(router) for client in world.clients for router in world.routers]
        running = asyncio.gather(*streams)
        await asyncio.sleep(self._rng.uniform(0, 0.1))
        self._rng.choice(world.replicas).kill()
        await running

    async def strike_last(self) -> None:
        """The storage gets bad as the replicas start. No commit follows, so nothing hides what they lack then."""
        if "bad storage" in self._without:
            return
        for replica in self._world.replicas:
            replica.kill()
            replica.start()
        await self._moment("starting")
        self._world.storage_faults.chance = 0.4
        await asyncio.sleep(5)
        self._world.storage_faults.chance = 0.0

    def _victim(self) -> Server | None:
        whole = [server for server in self._world.servers if server.name not in self._broken]
        return self._rng.choice(whole) if whole else None

    async def _victim_at(self, *moments: str) -> Server | None:
        """Any whole server now, or the one that is the next to come to one of the moments of `Storage.next`."""
        if self._rng.random() < 0.5:
            return self._victim()
        name = await self._moment(self._rng.choice(moments))
        return next((one for one in self._world.servers if one.name == name and name not in self._broken), None)

    async def _moment(self, moment: str) -> str:
        """The name of the node that comes to it; "" if it takes too long."""
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                return await self._world.storage.next(moment)
        except TimeoutError:
            return ""

    async def _kill(self) -> None:
        if (server := await self._victim_at("uploaded", "committing", "committed")) is None:
            return
        self._broken.add(server.name)
        server.kill()
        await asyncio.sleep(self._rng.uniform(0.1, 2 * LEASE_SECONDS))
        server.start()
        self._broken.discard(server.name)

    async def _pause(self) -> None:
        """The process stands still, longer than its lease at times, and does not notice."""
        if (server := await self._victim_at("uploaded", "committed")) is None:
            return
        self._broken.add(server.name)
        server.node.up = False
        if isinstance(server, Trainer) and self._rng.random() < 0.5:
            await self._cancel_what_publishes(server)
        await asyncio.sleep(self._rng.uniform(0.1, self._rng.choice((1, 3)) * LEASE_SECONDS))
        wake(server.node)
        self._broken.discard(server.name)

    async def _cancel_what_publishes(self, trainer: Trainer) -> None:
        """The owners of the jobs that this trainer publishes cancel them."""
        for client in self._world.clients:
            for job in sorted(trainer.jobs._publisher.job_ids & set(client.jobs)):
                for _ in range(2):  # the trainer that is asked may be this one
                    await client.ask(job, "cancel")

    async def _drain(self) -> None:
        if (server := self._victim()) is None:
            return
        self._broken.add(server.name)
        await server.drain()
        server.start()
        self._broken.discard(server.name)

    async def _cut_off(self) -> None:
        if (server := self._victim()) is None:
            return
        cut = self._rng.choice((self._world.storage_faults, self._world.database_faults)).cut_off
        cut.add(server.name)
        await asyncio.sleep(self._rng.uniform(1, 3 * LEASE_SECONDS))
        cut.discard(server.name)

    async def _part(self) -> None:
        """A router and a replica can't reach each other, at times for longer than connections last."""
        router, replica = self._rng.choice(self._world.routers), self._rng.choice(self._world.replicas)
        self._world.cuts[cut := (router.name, replica.name)] += 1
        seconds = self._rng.uniform(1, self._rng.choice((10, 2 * KEEPALIVE_SECONDS)))
        await asyncio.sleep(min(seconds, KEEPALIVE_SECONDS))
        if seconds > KEEPALIVE_SECONDS:
            router.lose(replica)
            await asyncio.sleep(seconds - KEEPALIVE_SECONDS)
        self._world.cuts[cut] -= 1

    async def _slow_down(self) -> None:
        """A replica takes longer for each token, at times longer than its callers wait."""
        replica = self._rng.choice(self._world.replicas)
        replica.token_seconds = self._rng.uniform(0.2, 10)
        await asyncio.sleep(self._rng.uniform(5, 30))
        replica.token_seconds = TOKEN_SECONDS

    async def _harm_worker(self) -> None:
        trainer = self._rng.choice(self._world.trainers)
        if trainer.ready and trainer.node.up:
            start_on(trainer.node, trainer.pool.harm_one())

    async def _bad(self, faults: StorageFaults, worst: float) -> None:
        chance, seconds = self._rng.uniform(0.02, worst), self._rng.uniform(1, 30)
        moment = "committing" if faults is self._world.storage_faults else "committed"
        if self._rng.random() < 0.3 and await self._moment(moment):
            chance, seconds = 0.5, self._rng.uniform(0.1, 2)
        writes = {self._world.database_faults: [*self._world.database.writers, ""], self._world.storage_faults: [LOG]}
        if faults in writes and self._rng.random() < 0.5:
            faults.aim = self._rng.choice(writes[faults])
            chance = self._rng.choice((0.0, chance))  # other calls, such as renewals of leases, may heal what is lost
        faults.chance = chance
        await asyncio.sleep(seconds)
        faults.chance, faults.aim = 0.0, ""

    async def _lose_writes(self) -> None:
        for _ in range(4):
            self._world.database_faults.aim = self._rng.choice([*self._world.database.writers] or [""])
            await asyncio.sleep(self._rng.uniform(1, 10))

    async def _fail_over(self) -> None:
        """The database's replication stalls; then its standby takes over, and does not answer at first."""
        world, seconds = self._world, self._rng.uniform(0.1, 8)
        world.failover_at = asyncio.get_running_loop().time() + seconds
        await asyncio.sleep(seconds)
        cut = {server.name for server in world.servers} - world.database_faults.cut_off
        world.database_faults.cut_off |= cut
        await asyncio.sleep(self._rng.uniform(0.1, 5))
        world.database_faults.cut_off -= cut

    async def _fill_disk(self) -> None:
        full = self._rng.choice((self._world.storage_faults, self._world.database))
        full.is_full = True
        await asyncio.sleep(self._rng.uniform(1, 30))
        full.is_full = False

    async def _cut_power(self) -> None:
        """The machine of all processes loses power, if they share a directory. The database is on another machine."""
        world = self._world
        await self._moment(self._rng.choice(("named", "uploaded", "committed")))
        if self._broken:  # a process that another fault holds would not lose its memory
            return
        self._broken |= {server.name for server in world.servers}
        for server in world.servers:
            server.kill()
        world.history.add("power cut", newest=world.storage.lose_power())
        await asyncio.sleep(self._rng.uniform(0.1, LEASE_SECONDS))
        for server in world.servers:
            server.start()
        self._broken.clear()

    async def _move_clock(self) -> None:
        self._rng.choice(self._world.servers).node.skew_seconds = self._rng.uniform(-300, 300)
