"""The simulation's clients against the real stack: the same calls, over real sockets with the product's own client."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar, cast

import httpx

from shared.caller import Caller
from shared.errors import (
    Cancelled,
    Conflict,
    DeadlineExceeded,
    NotFound,
    Overloaded,
    PreconditionFailed,
    SoftPromptError,
    Unavailable,
)
from shared.names import parse_version_name
from shared.security.tokens import TOKEN_PREFIX, hash_token
from shared.store.base import ObjectBackend
from shared.store.commit import Commit
from shared.store.log import CommitLog
from softprompt import AsyncClient, Hyperparameters, TuningSpec
from softprompt.client.calls import carrying
from softprompt.types.events import StateChanged
from tests.chaos.stack import Part, Stack
from tests.simulation.clients import PROMPTS, TENANTS, Client
from tests.simulation.history import History
from trainer_service.database.database import Database
from trainer_service.jobs.model import StoredSpec

T = TypeVar("T")

OPERATOR = "operator"
NUM_MOVES = 400
"""Callers of each tenant. The checker recognises the move of an alias by its caller, so each move needs another one."""
MAX_JOBS = 4
"""Jobs of a tenant that have not ended; with more, the queue would grow without end."""
_STEPS = 40
"""For each step that the simulation's client asks for."""
_TOKENS = 8
_EXAMPLES = [{"input": f"order {number}", "output": "on its way"} for number in range(12)]
_EXPECTED = (NotFound, PreconditionFailed, Conflict, Overloaded, Unavailable)


def token_of(caller: str) -> str:
    """The caller's token."""
    return TOKEN_PREFIX + hashlib.sha256(caller.encode()).hexdigest()


def write_callers(path: Path) -> None:
    """The file of all callers."""
    names = [(f"caller-{tenant}{end}", tenant) for tenant in TENANTS for end in _ends()]
    tenants = [{"name": f"tenant-{tenant}"} for tenant in TENANTS]
    callers: list[dict[str, Any]] = [
        {"name": name, "tenant": f"tenant-{tenant}", "roles": ["admin"], "prompts": [f"{tenant}-*"]}
        for name, tenant in names
    ]
    callers.append({"name": OPERATOR, "roles": ["admin"]})
    callers = [entry | {"token_sha256": [hash_token(token_of(entry["name"]))]} for entry in callers]
    path.write_text(json.dumps({"tenants": tenants, "callers": callers}))


def _ends() -> list[str]:
    return ["", *(f"/{number}" for number in range(1, NUM_MOVES + 1))]


class Remote:
    """A part of the stack, which answers the calls that the simulated one answers."""

    def __init__(self, world: World, part: Part) -> None:
        self.world, self.part, self.name = world, part, part.name
        self._client: AsyncClient | None = None

    async def call(self, caller: Caller, act: Callable[[Any], Awaitable[T]]) -> T:
        """`act(self)` as the caller. Raises the errors of the service."""
        if self._client is None:
            self._client = AsyncClient(self.part.address, self.part.address, timeout_seconds=20)
        try:
            with carrying((("authorization", f"Bearer {token_of(caller.name)}"),)):
                return await act(self._view(self._client, caller))
        except (DeadlineExceeded, Cancelled) as error:
            raise Unavailable(error.message) from error
        except _EXPECTED:
            raise
        except SoftPromptError as error:
            self.world.history.add("died", server=self.name, why=f"an answer: {type(error).__name__} {error.message}")
            raise Unavailable(error.message) from error

    async def close(self) -> None:
        """Closes its connections."""
        if self._client is not None:
            await self._client.close()

    def _view(self, client: AsyncClient, caller: Caller) -> Any:
        raise NotImplementedError


class RemoteTrainer(Remote):
    def _view(self, client: AsyncClient, caller: Caller) -> Any:
        return _TrainerView(client)


class RemoteReplica(Remote):
    """A replica, or the router before all of them."""

    def _view(self, client: AsyncClient, caller: Caller) -> Any:
        async def answer(prompt: str, alias: str) -> dict[str, Any]:
            stream = client.stream("order 1", prompt=f"{prompt}@{alias}", timeout_seconds=60, max_new_tokens=_TOKENS)
            text = "".join([delta.text async for delta in stream])
            assert stream.start is not None
            return self.world.seen(parse_version_name(stream.start.version, "version")[1], "text", text)

        return SimpleNamespace(answer=answer)


class RemoteGateway(Remote):
    """OpenAI's API."""

    def _view(self, client: AsyncClient, caller: Caller) -> Any:
        async def answer(prompt: str, alias: str) -> dict[str, Any]:
            body = {"model": f"{prompt}@{alias}", "max_tokens": _TOKENS, "temperature": 0, "stream": True}
            body |= {"messages": [{"role": "user", "content": "order 1"}]}
            chunks = await self._events(caller, body)
            text = "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])
            return self.world.seen(int(chunks[0]["model"].rpartition("@")[2]), "chat", text)

        return SimpleNamespace(answer=answer)

    async def _events(self, caller: Caller, body: dict[str, Any]) -> list[dict[str, Any]]:
        headers = {"Authorization": f"Bearer {token_of(caller.name)}"}
        url = f"http://{self.part.address}/v1/chat/completions"
        try:
            async with (
                httpx.AsyncClient(timeout=60, trust_env=False) as client,
                client.stream("POST", url, json=body, headers=headers) as response,
            ):
                text = (await response.aread()).decode()
        except httpx.TransportError as error:
            raise Unavailable(f"the gateway can't be reached: {type(error).__name__}") from error
        if response.status_code == 404:
            raise NotFound("prompt", str(body["model"]))
        if response.status_code in (429, 502, 503, 504):
            raise Unavailable(text[:200])
        if response.status_code != 200:
            raise SoftPromptError(f"{response.status_code} {text[:200]}")
        lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
        if not lines or lines[-1] != "[DONE]":
            raise Unavailable("the stream was cut")
        chunks = [json.loads(line) for line in lines[:-1]]
        if any("error" in chunk for chunk in chunks):
            raise Unavailable("the stream ended with an error")
        return chunks


class _TrainerView:
    """One connection to a trainer, as `tests.simulation.world.Trainer` looks to its clients."""

    def __init__(self, client: AsyncClient) -> None:
        self.client = client
        self.jobs = SimpleNamespace(create=self._create, list=self._list_jobs)
        for verb in ("cancel", "pause", "resume"):
            setattr(self.jobs, verb, self._asking(getattr(client, f"{verb}_job")))
        self.prompts = SimpleNamespace(
            get=self._prompt, set_alias=self._set_alias, delete=self._delete, list=self._list_prompts
        )

    async def _create(self, asked: StoredSpec, *, request_id: str) -> Any:
        steps = Hyperparameters(num_steps=_STEPS * (asked.hyperparameters.num_steps or 1))
        spec = TuningSpec(prompt=asked.prompt, dataset=_EXAMPLES, hyperparameters=steps, deadline=asked.deadline)
        job = await self.client.create_job(spec, request_id=request_id)
        return SimpleNamespace(id=job.name.removeprefix("tuningJobs/"), spec=asked)

    def _asking(self, method: Callable[[str], Awaitable[Any]]) -> Callable[[str], Awaitable[Any]]:
        async def ask(job_id: str) -> Any:
            return await method(f"tuningJobs/{job_id}")

        return ask

    async def resume_job(self, job_id: str) -> None:
        await self.jobs.resume(job_id)

    async def get_job(self, job_id: str) -> Any:
        return await self.client.get_job(f"tuningJobs/{job_id}")

    async def watch_job(self, job_id: str, after: int) -> AsyncIterator[tuple[int, str]]:
        async for event in self.client.watch_job(f"tuningJobs/{job_id}", after=after, reconnect_seconds=20):
            yield event.number, event.job.state.value if isinstance(event, StateChanged) else ""

    async def _list_jobs(self, filter: Any, size: int) -> Any:
        jobs = await self.client.list_jobs(limit=size)
        return SimpleNamespace(jobs=jobs)

    async def _list_prompts(self, prefix: str, size: int) -> Any:
        return await self.client.list_prompts(), ""

    async def _prompt(self, prompt: str) -> Any:
        aliases = {alias.name: alias for alias in (await self.client.get_prompt(prompt)).aliases}
        versions = [parse_version_name(item.name, "version")[1] for item in await self.client.list_versions(prompt)]
        if not versions:
            raise NotFound("version", prompt)
        return SimpleNamespace(aliases=aliases, versions=versions)

    async def _set_alias(self, prompt: str, alias: str, targets: list[Any], *, expected_revision: int) -> Any:
        moved = await self.client.set_alias(prompt, alias, targets[0].version, expected_revision=expected_revision)
        return moved, moved.revision

    async def _delete(self, prompt: str, version: int) -> None:
        await self.client.delete_version(f"{prompt}@{version}")

    async def copy(self, prompt: str, target: str, request_id: str, file: Path) -> int:
        """Imports the newest version of a prompt as one of another prompt; returns its number."""
        versions = await self.client.list_versions(prompt)
        if not versions:
            raise NotFound("version", prompt)
        _, data = await self.client.download_version(versions[0].name)
        await asyncio.to_thread(file.write_bytes, data)
        made = await self.client.import_version(file, target, alias="canary", request_id=request_id)
        return parse_version_name(made.name, "version")[1]


class ChaosClient(Client):
    """A client of one tenant; it also imports."""

    wishes = ("plain",)

    async def create(self) -> None:
        if sum(not watch.done() for watch in self._watches) < MAX_JOBS:
            await super().create()

    async def move_alias(self) -> None:
        if self._numbers + 2 <= NUM_MOVES:
            await super().move_alias()

    async def import_(self) -> None:
        self._numbers += 1
        request = f"{self.tenant}-import-{self._numbers}"
        prompt, target = (f"{self.tenant}-{name}" for name in self.rng.sample(PROMPTS, 2))
        file = cast(World, self.world).directory / f"{request}.safetensors"
        for _ in range(6):
            try:
                version = await self._trainer().call(
                    self.caller, lambda trainer: cast(Any, trainer).copy(prompt, target, request, file)
                )
            except (Unavailable, NotFound):  # NotFound: the version was deleted before its bytes came
                await asyncio.sleep(1)
            else:
                self.world.history.add("imported", request=request, prompt=target, version=version)
                return


class World:
    """What `tests.simulation.checker` and the clients see of the real stack."""

    is_crowded = False

    def __init__(self, seed: int, directory: Path, history: History) -> None:
        self.rng, self.directory, self.history = random.Random(seed), directory, history
        self.trainers: list[Remote] = []
        self.replicas: list[Remote] = []
        self.routers: list[Remote] = []  # they are among the replicas
        self.storage = SimpleNamespace(commits=dict[int, Commit](), objects=cast(ObjectBackend, None))
        self.database = cast(Database, None)

    def attach(self, stack: Stack, objects: ObjectBackend, database: Database) -> None:
        """`objects`: the S3 server's directory, read without the server."""
        self.storage.objects, self.database = objects, database
        self.trainers = [RemoteTrainer(self, part) for part in stack.trainers]
        self.replicas = [RemoteReplica(self, part) for part in (*stack.replicas, stack.router)]
        self.replicas.append(RemoteGateway(self, stack.gateway))

    def now(self) -> float:
        return time.time()

    def read_log(self) -> int:
        """Notes the commits that are new; returns the newest revision."""
        log, commits = CommitLog(self.storage.objects), self.storage.commits
        while (commit := log.read(len(commits) + 1)) is not None:
            commits[commit.revision] = commit
        return len(commits)

    def seen(self, version: int, form: str, text: str) -> dict[str, Any]:
        """Facts of an answer. The store's newest revision is an upper bound of what the replica knew."""
        return {"version": version, "revision": self.read_log(), "life": None, "form": form, "text": text}
