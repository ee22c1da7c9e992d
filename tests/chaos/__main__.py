"""`python -m tests.chaos --kills N --seed S`: kill -9 of random processes under load; the simulation's checker judges.

Prints a table of recovery times on stderr and all figures as one JSON line on stdout. Exit status 1: a promise was
broken.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import statistics
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

from sqlalchemy import select

from shared.caller import Caller, Role
from shared.errors import SoftPromptError, Unavailable
from shared.store.local import LocalBackend
from shared.store.store import PromptStore
from shared.values.results import TuningProgress
from tests.chaos.clients import OPERATOR, ChaosClient, Remote, World, write_callers
from tests.chaos.stack import Part, Stack
from tests.inference_service.replica import blob, matrix, publish
from tests.simulation.checker import check, edges
from tests.simulation.clients import PROMPTS, TENANTS
from tests.simulation.history import History
from tests.tiny_models import save_tiny_llama
from tests.trainer_service.postgres import Postgres, find_binaries
from trainer_service.database.database import Database
from trainer_service.database.schema import jobs
from trainer_service.jobs.model import Job
from trainer_service.jobs.states import JobState
from trainer_service.jobs.store.job_store import JobStore

KINDS = ("trainer", "worker", "Ray head", "replica", "router", "gateway", "PostgreSQL", "S3 server")
HEAL_SECONDS = 600.0
"""Within this time a killed part works again, and after the last kill everything has healed."""
MOST_BROKEN = 2
PROBE = "probe"
"""A prompt of the operator."""


class Chaos:
    """Kills, and measures how long each kind of part doesn't work."""

    def __init__(self, world: World, stack: Stack, kinds: Sequence[str] = KINDS) -> None:
        self._world, self._stack, self._rng, self._kinds = world, stack, world.rng, kinds
        self._operator = Caller(OPERATOR, frozenset({Role.ADMIN}))
        self._store = JobStore(world.database)
        self.seconds: defaultdict[str, list[float]] = defaultdict(list)
        """From each kill until the part works again, by kind."""
        self.problems: list[str] = []
        self._broken: dict[str, asyncio.Task[None]] = {}

    async def run(self, kills: int, until: float) -> None:
        """That number of kills, fewer if the time is up; returns when all is repaired."""
        done = 0
        while done < kills and asyncio.get_running_loop().time() < until:
            await asyncio.sleep(self._rng.uniform(1, 8))
            if len(self._broken) < MOST_BROKEN and await self._kill(self._rng.choice(self._kinds)):
                done += 1
        await asyncio.gather(*self._broken.values(), return_exceptions=True)

    async def _kill(self, kind: str) -> bool:
        """Whether there was something to kill."""
        stack, part = self._stack, None
        if kind == "PostgreSQL":
            name, probes = kind, [self._lists_jobs(trainer) for trainer in self._world.trainers]
            kill: Callable[[], object] = stack.postgres.kill
        else:
            wanted = "trainer" if kind in ("worker", "Ray head") else kind
            whole = [part for part in stack.parts if part.kind == wanted and part.serves]
            if not whole:
                return False
            part = self._rng.choice(whole)
            name, probes, kill = part.name, [self._probe(kind, part)], part.kill
        if kind in ("worker", "Ray head"):
            assert part is not None
            victim = part.descendant("ray::WorkerActor" if kind == "worker" else "gcs_server")
            training = await asyncio.to_thread(self._jobs_on, part)
            if victim is None or not training:
                return False
            name, probes, kill = f"{name}/{kind}", [self._goes_on(training)], victim.kill
            if kind == "Ray head":
                part.was_killed = True  # its trainer ends itself
        if name in self._broken:
            return False
        with suppress(Exception):  # it ended just now
            kill()
        self._world.history.add("killed", part=name, what=kind)
        task = asyncio.create_task(self._measure(kind, name, probes))
        self._broken[name] = task
        task.add_done_callback(lambda _: self._repaired(name))
        return True

    def _repaired(self, name: str) -> None:
        task = self._broken.pop(name)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.problems.append(f"{name} was not measured: {error!r}")

    async def _measure(self, kind: str, name: str, probes: list[Callable[[], Awaitable[Any]]]) -> None:
        begun = time.monotonic()
        if kind == "PostgreSQL":
            await self._stack.restart_postgres()
        for probe in probes:
            while True:
                try:
                    async with asyncio.timeout(20):
                        await probe()
                    break
                except (SoftPromptError, TimeoutError):
                    await asyncio.sleep(0.1)
                if time.monotonic() - begun > HEAL_SECONDS:
                    self.problems.append(f"{name} did not work again within {HEAL_SECONDS:.0f} s")
                    return
        self.seconds[kind].append(time.monotonic() - begun)

    def _probe(self, kind: str, part: Part) -> Callable[[], Awaitable[Any]]:
        if kind == "S3 server":
            return self._moves_an_alias
        for remote in self._world.trainers:
            if remote.part is part:
                return self._lists_jobs(remote)
        [remote] = [remote for remote in self._world.replicas if remote.part is part]
        return lambda: remote.call(self._operator, lambda view: view.answer(PROBE, "default"))

    def _lists_jobs(self, trainer: Remote) -> Callable[[], Awaitable[Any]]:
        return lambda: trainer.call(self._operator, lambda view: view.client.list_jobs(limit=1))

    async def _moves_an_alias(self) -> None:
        trainer = self._rng.choice(self._world.trainers)
        await trainer.call(self._operator, lambda view: view.client.set_alias(PROBE, "canary", self._rng.randint(1, 2)))

    def _jobs_on(self, trainer: Part) -> list[Job]:
        """The jobs that its workers train now."""
        assert trainer.process is not None
        mine = jobs.c.owner.contains(f"-{trainer.process.pid}-"), jobs.c.state == "RUNNING", jobs.c.trained.is_(False)
        with suppress(Unavailable), self._world.database.read() as connection:
            return [self._store.get(id) for id in connection.scalars(select(jobs.c.id).where(*mine)).all()]
        return []

    def _goes_on(self, before: list[Job]) -> Callable[[], Awaitable[Any]]:
        """Whether one of the jobs has trained in a further attempt, or has left the workers otherwise."""

        def look() -> None:
            for job in before:
                now = self._store.get(job.id)
                payloads = [event.payload for event in self._store.events(job.id, job.last_event)]
                again = [number for number, found in enumerate(payloads) if _is_attempt_after(job, found)]
                trains = again and any(isinstance(found, TuningProgress) for found in payloads[again[0] :])
                if now.state not in (JobState.QUEUED, JobState.RUNNING) or trains:
                    return
            raise Unavailable("no job has gone on yet")

        return lambda: asyncio.to_thread(look)


def _is_attempt_after(before: Job, payload: object) -> bool:
    return isinstance(payload, Job) and payload.attempt > before.attempt and payload.state is JobState.RUNNING


async def _live(given: argparse.Namespace, place: Path, postgres: Postgres) -> dict[str, Any]:
    seed: int = given.seed
    history, loop = History(), asyncio.get_running_loop()
    model = save_tiny_llama(place / "tiny")
    write_callers(callers := place / "callers.json")
    world = World(seed, place, history)
    url = postgres.create_database("chaos")
    stack = Stack(place, model, callers, postgres, url, history, given.of_each)
    objects = LocalBackend(stack.objects_dir / "store")
    for number in (1, 2):
        publish(PromptStore(objects), blob(model, matrix(number), PROBE), PROBE)
    database = Database(url)
    world.attach(stack, objects, database)
    try:
        await stack.start()
        chaos = Chaos(world, stack, given.kinds.split(","))
        clients = [ChaosClient(cast(Any, world), tenant) for tenant in TENANTS]
        begun = loop.time()
        load = [asyncio.create_task(client.run(float("inf"))) for client in clients]
        try:
            await chaos.run(given.kills, begun + given.seconds)
        finally:
            for task in load:
                task.cancel()
            ends = await asyncio.gather(*load, return_exceptions=True)
        chaos.problems += [f"a client ended: {end!r}" for end in ends if not isinstance(end, asyncio.CancelledError)]
        await asyncio.gather(*(client.resume_all() for client in clients))
        problems = [*chaos.problems, *await _judged(world, clients)]
        return {
            "seed": seed,
            "kills": dict(Counter(event.what for event in history.of("killed"))),
            "seconds": round(loop.time() - begun),
            "recovery_seconds": {kind: _summary(chaos.seconds[kind]) for kind in KINDS if chaos.seconds[kind]},
            "failed_starts": {part.name: part.num_failed_starts for part in stack.parts if part.num_failed_starts},
            "events": dict(Counter(event.kind for event in history.events)),
            "edges": {
                f"{before} to {after}": number for (before, after), number in sorted(edges(cast(Any, world)).items())
            },
            "broken": problems,
        }
    finally:
        await asyncio.gather(*(remote.close() for remote in (*world.trainers, *world.replicas)))
        await stack.close()
        database.close()
        (place / "history.txt").write_text("\n".join(map(str, history.events)))


def _summary(seconds: list[float]) -> dict[str, float]:
    return {"times": len(seconds), "median": round(statistics.median(seconds), 1), "worst": round(max(seconds), 1)}


async def _judged(world: World, clients: list[ChaosClient]) -> list[str]:
    """The broken promises that are left after the time in which all must heal."""
    deadline, seen = asyncio.get_running_loop().time() + HEAL_SECONDS, set[str]()
    operator = ChaosClient(cast(Any, world), OPERATOR)
    operator.caller = Caller(OPERATOR, frozenset({Role.ADMIN}))
    while True:
        world.history.add("quiet")
        for client in clients:
            for replica in world.replicas:
                for prompt in PROMPTS:
                    for alias in ("default", "canary"):
                        await client.generate_with(cast(Any, replica), f"{client.tenant}-{prompt}", alias)
        for replica in world.replicas:
            for alias in ("default", "canary"):
                await operator.generate_with(cast(Any, replica), PROBE, alias)
        world.read_log()
        problems = await asyncio.to_thread(check, cast(Any, world))
        for problem in problems:
            if problem not in seen:
                print(f"broken, or not healed yet: {problem}", file=sys.stderr, flush=True)
        seen.update(problems)
        if not problems or asyncio.get_running_loop().time() > deadline:
            return problems
        await asyncio.sleep(5)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="no further kills after this time")
    parser.add_argument("--kinds", default=",".join(KINDS), help="what is killed, with commas")
    parser.add_argument("--of-each", type=int, default=2, help="number of trainers, and of replicas")
    parser.add_argument("--keep", type=Path, help="directory that keeps logs, data and history [a temporary one]")
    given = parser.parse_args()
    for name in [name for name in os.environ if name.startswith(("SOFTPROMPT_", "RAY_"))]:
        del os.environ[name]
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if (binaries := find_binaries()) is None:
        parser.error("PostgreSQL is not installed")
    with TemporaryDirectory(prefix="chaos-") as temporary, TemporaryDirectory(prefix="pg-") as data:
        place = (given.keep or Path(temporary)).absolute()
        place.mkdir(parents=True, exist_ok=True)
        postgres = Postgres(binaries, Path(data))
        postgres.start()
        try:
            figures = asyncio.run(_live(given, place, postgres))
        finally:
            postgres.stop()
    print(f"{'killed':<12} {'times':>5} {'median s':>9} {'worst s':>8}", file=sys.stderr)
    for kind, found in figures["recovery_seconds"].items():
        print(f"{kind:<12} {found['times']:>5} {found['median']:>9} {found['worst']:>8}", file=sys.stderr)
    print(json.dumps(figures))
    return bool(figures["broken"])


if __name__ == "__main__":
    sys.exit(main())
