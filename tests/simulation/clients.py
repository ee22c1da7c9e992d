"""Clients of three tenants. Each repeats what a client library repeats, and records the answers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from operator import methodcaller
from typing import Any

from shared.caller import Caller, Role, Tenant
from shared.errors import Conflict, DamagedBlob, NotFound, Overloaded, PreconditionFailed, SoftPromptError, Unavailable
from shared.store import AliasTarget
from shared.text.template import Template
from tests.simulation.serving import Answering, Server
from tests.simulation.world import Trainer, World
from tests.trainer_service.builders import spec
from trainer_service.imports import ImportRequest
from trainer_service.jobs.model import Job, JobFilter

TENANTS = ("a", "b", "c")
PROMPTS = ("tone", "mood")
ALIASES = ("default", "canary")
_TRIES = 6
_CROWDS = {"a": (0.0, 32), "b": (6.0, 16)}
"""When a tenant of a crowded life creates its jobs, in seconds, and how many."""


class Client:
    """One caller of one tenant, with its own prompts."""

    wishes: tuple[str, ...] = ("plain",) * 8 + ("nan", "oom")
    """How its jobs shall end, see `checker.ENDS`."""

    def __init__(self, world: World, tenant: str) -> None:
        self.world, self.tenant, self.rng = world, tenant, world.rng
        self.caller = Caller(
            f"caller-{tenant}", frozenset({Role.ADMIN}), prompts=(f"{tenant}-*",), group=Tenant(f"tenant-{tenant}")
        )
        if world.is_crowded:  # a job that needs a worker for itself does not wait for its tenant's turn
            self.wishes = ("plain",)
        self.aliases = [(f"{tenant}-{prompt}", alias) for prompt in PROMPTS for alias in ALIASES]
        self._numbers = 0
        self.jobs: list[str] = []
        self._watches: list[asyncio.Task[None]] = []

    async def run(self, until: float) -> None:
        """Acts at random until this time; in a crowded life, first creates many jobs at once."""
        if self.world.is_crowded:
            delay, number = _CROWDS.get(self.tenant, (0.0, 0))
            await asyncio.sleep(delay)
            for _ in range(number):
                await self.create()
        acts = [self.create, self.request, self.move_alias, self.generate, self.list_, self.delete_version]
        acts += [self.create, self.move_alias, self.generate, self.peek, self.import_]
        while asyncio.get_running_loop().time() < until:
            await asyncio.sleep(self.rng.uniform(0.1, 4))
            await self.rng.choice(acts)()

    async def create(self) -> None:
        """Creates a job, with one request id for all tries, and watches it."""
        self._numbers += 1
        request_id = f"{self.tenant}-{self._numbers}"
        wish = self.rng.choice(self.wishes)
        steps = self.rng.randint(2, 15)
        deadline = self.world.now() + self.rng.uniform(5, 60)
        limits = {"deadline": datetime.fromtimestamp(deadline, UTC)} if self.rng.random() < 0.1 else {}
        asked = spec(wish, f"{self.tenant}-{self.rng.choice(PROMPTS)}", steps, **limits)
        begun = self.world.history.add("creating", request=request_id, prompt=asked.prompt, wish=wish)
        for _ in range(_TRIES):
            try:
                job: Job = await self._trainer().call(
                    self.caller,
                    lambda trainer: trainer.jobs.create(asked, request_id=request_id),
                )
            except Unavailable:
                await asyncio.sleep(self.rng.uniform(0, 2))
            except Overloaded:
                return
            else:
                facts = {"prompt": job.spec.prompt, "wish": wish, "has_deadline": bool(limits)}
                self.world.history.add("created", request=request_id, job=job.id, **facts)
                self.jobs.append(job.id)
                self._watches.append(asyncio.create_task(self._watch(job.id)))
                return
        begun.facts["given_up"] = True

    def adopt(self, job_id: str, prompt: str) -> None:
        """Watches a job that it created before this life began."""
        facts = {"prompt": prompt, "wish": "plain", "has_deadline": False}
        self.world.history.add("created", request="", job=job_id, **facts)
        self.jobs.append(job_id)
        self._watches.append(asyncio.create_task(self._watch(job_id)))

    async def request(self) -> None:
        """Cancels, pauses or resumes one of its own jobs."""
        if not self.jobs:
            return
        some = self.rng.choice((self.jobs, self.jobs[-3:]))  # the newest have not ended
        await self.ask(self.rng.choice(some), self.rng.choice(("cancel", "pause", "resume", "resume")))

    async def ask(self, job_id: str, verb: str) -> None:
        """Cancels, pauses or resumes this job."""
        self.world.history.add("asking", job=job_id, verb=verb)
        try:
            job: Job = await self._trainer().call(self.caller, lambda trainer: getattr(trainer.jobs, verb)(job_id))
        except (Unavailable, PreconditionFailed) as error:
            self.world.history.add("asked", job=job_id, verb=verb, outcome=type(error).__name__)
        else:
            self.world.history.add("asked", job=job_id, verb=verb, outcome=job.state.value)

    async def finish(self) -> None:
        """The end of a life: jobs and aliases change, so that the last faults meet all of them; no job stays paused."""
        for _ in range(2):
            await self.create()
            await self.move_alias()
            await asyncio.sleep(self.rng.uniform(0, 15))
        await self.resume_all()

    async def resume_all(self) -> None:
        """Resumes every job that is paused."""
        for job_id in self.jobs:
            for _ in range(_TRIES):
                try:
                    await self._trainer().call(self.caller, methodcaller("resume_job", job_id))
                except Unavailable:
                    await asyncio.sleep(1)
                except PreconditionFailed:
                    break
                else:
                    break

    async def move_alias(self) -> None:
        """Moves an alias to a version at random, if it still names what was read before; at times with a rival."""
        prompt, alias = f"{self.tenant}-{self.rng.choice(PROMPTS)}", self.rng.choice(ALIASES)
        seconds = self.rng.choice((0.0, self.rng.uniform(0, 0.5)))
        movers = self.rng.choice((1, 1, 2))
        await asyncio.gather(*(self._move(prompt, alias, seconds) for _ in range(movers)))

    async def _move(self, prompt: str, alias: str, after_seconds: float) -> None:
        self._numbers += 1
        actor = f"{self.caller.name}/{self._numbers}"  # makes each change recognisable in the log
        caller = Caller(actor, self.caller.roles, self.caller.prompts, group=self.caller.group)
        try:
            record = await self._trainer().call(caller, lambda trainer: trainer.prompts.get(prompt))
        except (Unavailable, NotFound):
            return
        current = record.aliases.get(alias)
        revision = current.revision if current else 0
        target = self.rng.choice(sorted(record.versions))
        facts: dict[str, Any] = {"actor": actor, "prompt": prompt, "alias": alias, "target": target}
        facts["expected"] = [part.version for part in current.targets] if current else []
        begun = self.world.history.add("moving", **facts)
        await asyncio.sleep(after_seconds)
        try:
            _, revision = await self._trainer().call(
                caller,
                lambda trainer: trainer.prompts.set_alias(
                    prompt, alias, [AliasTarget(target)], expected_revision=revision
                ),
            )
        except SoftPromptError as error:
            outcome = "unknown" if isinstance(error, Unavailable) else type(error).__name__
            self.world.history.add("moved", actor=actor, outcome=outcome, begun=begun.time)
        else:
            self.world.history.add("moved", actor=actor, outcome="done", begun=begun.time, revision=revision)

    async def delete_version(self) -> None:
        """Deletes a version."""
        prompt = f"{self.tenant}-{self.rng.choice(PROMPTS)}"
        try:
            record = await self._trainer().call(self.caller, lambda trainer: trainer.prompts.get(prompt))
            if len(record.versions) > 1:
                version = self.rng.choice((max(record.versions), self.rng.choice(sorted(record.versions))))
                await self._trainer().call(self.caller, lambda trainer: trainer.prompts.delete(prompt, version))
        except (Unavailable, NotFound, PreconditionFailed, Conflict):
            return

    async def import_(self) -> None:
        """Imports the newest version of one of its prompts into the other one, with one request id for all tries."""
        self._numbers += 1
        request_id = f"{self.tenant}-import-{self._numbers}"
        prompt, target = (f"{self.tenant}-{name}" for name in self.rng.sample(PROMPTS, 2))
        request, data = ImportRequest(target, "", Template(), (), "canary", request_id), b""
        for _ in range(_TRIES):
            try:
                data = data or await self._trainer().call(self.caller, methodcaller("newest_blob", prompt))
                version = await self._trainer().call(self.caller, methodcaller("import_", request, data))
            except Unavailable:
                await asyncio.sleep(self.rng.uniform(0, 2))
            except (NotFound, PreconditionFailed):  # there is no version, or the new one is deleted already
                return
            except DamagedBlob:
                self.world.history.add("gone", prompt=prompt, version="newest")
                return
            else:
                self.world.history.add("imported", request=request_id, prompt=target, version=version)
                return

    async def list_(self) -> None:
        """Lists jobs and prompts: all must be its tenant's."""

        async def both(trainer: Any) -> tuple[list[str], list[str]]:
            page = await trainer.jobs.list(JobFilter(), 50)
            found, _ = await trainer.prompts.list("", 50)
            names = [prompt.name.removeprefix("prompts/") for prompt in found]
            return [job.spec.prompt for job in page.jobs], names

        try:
            jobs, prompts = await self._trainer().call(self.caller, both)
        except Unavailable:
            return
        self.world.history.add("listed", tenant=self.tenant, prompts=sorted({*jobs, *prompts}))

    async def peek(self) -> None:
        """Tries to reach a job and a prompt of another tenant."""
        others = [event for event in self.world.history.of("created") if event.job not in self.jobs]
        if not others:
            return
        other = self.rng.choice(others)

        acts: list[tuple[Server, Callable[[Any], Awaitable[Any]]]]
        acts = [
            (self._trainer(), methodcaller("get_job", other.job)),
            (self.rng.choice(self._answering()), methodcaller("answer", other.prompt, "default")),
        ]
        for server, act in acts:
            try:
                await server.call(self.caller, act)
            except (Unavailable, NotFound, PreconditionFailed):
                continue
            self.world.history.add("peeked", tenant=self.tenant, prompt=other.prompt, what=server.name)

    async def generate(self) -> None:
        """Asks a replica or router for an answer with an alias."""
        await self.generate_with(self.rng.choice(self._answering()), *self.rng.choice(self.aliases))

    async def generate_all(self, server: Answering) -> None:
        """Asks for an answer with each alias of each prompt at once."""
        await asyncio.gather(*(self.generate_with(server, prompt, alias) for prompt, alias in self.aliases))

    async def generate_with(self, server: Answering, prompt: str, alias: str) -> None:
        """Records which version answers, and which replica."""
        facts = {"prompt": prompt, "alias": alias, "begun": asyncio.get_running_loop().time()}
        try:
            answer = await server.call(self.caller, methodcaller("answer", prompt, alias))
        except (Unavailable, NotFound, PreconditionFailed) as error:
            self.world.history.add("refused", replica=server.name, **facts, why=str(error)[:90])
            return
        self.world.history.add("streamed", **({"replica": server.name, "via": server.name} | facts | answer))

    def _answering(self) -> list[Answering]:
        return [*self.world.replicas, *self.world.routers]

    async def _watch(self, job_id: str) -> None:
        """Follows a job to its end, over as many calls as that takes."""
        numbers: list[int] = []
        states: list[str] = []

        async def follow(trainer: Trainer) -> None:
            call = call_number
            async for number, state in trainer.watch_job(job_id, numbers[-1] if numbers else 0):
                if call != call_number:
                    return  # the client has given this call up; its server does not know yet
                numbers.append(number)
                states.extend([state] if state else [])

        call_number = 0
        while True:
            call_number += 1
            try:
                await self._trainer().call(self.caller, follow)
            except Unavailable:
                await asyncio.sleep(1)
                continue
            self.world.history.add("watched", job=job_id, numbers=numbers, states=states)
            return

    def _trainer(self) -> Trainer:
        return self.rng.choice(self.world.trainers)
