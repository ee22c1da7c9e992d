"""Simulated processes: what all of them have in common, and replicas, whose engine is a toy."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar, cast

from inference_service.generation import GenerationService
from inference_service.inputs import InputRequest
from inference_service.prompts.heartbeat import Heartbeat
from inference_service.prompts.load_queue import VersionLoads
from inference_service.prompts.registry import PromptRegistry
from inference_service.prompts.version import RefusalReason, ServableVersion, VersionRefused, prefix_id_of
from inference_service.prompts.version_loader import VersionLoader
from inference_service.prompts.watcher import PromptWatcher
from shared.caller import Caller, calling
from shared.errors import DamagedBlob, NotFound, SoftPromptError, Unavailable
from shared.names import PromptReference
from shared.process.call_pool import CallPool
from shared.prompt.blob import decode_blob
from shared.store.index import VersionRecord
from shared.store.replicas import ReplicaDirectory
from shared.store.store import PromptStore
from tests.inference_service.prompts.fakes import NullPromptObserver
from tests.simulation.loop import CooperativeLock, Node, kill, start_on
from tests.simulation.storage import NetworkBackend
from tests.trainer_service.builders import BASE_MODEL

if TYPE_CHECKING:
    from tests.simulation.world import World

T = TypeVar("T")

CALL_SECONDS = 20.0
"""How long a client waits for an answer."""
NUM_TOKENS = 3
"""Tokens of each answer."""
TOKEN_SECONDS = 0.02
_HEARTBEAT_SECONDS = 10.0
_POLL_SECONDS = 2.0
_GRACE_SECONDS = 15.0


_decoded = lru_cache(maxsize=64)(decode_blob)
"""All replicas read the same blobs, and again after each start."""


class ToyLoader(VersionLoader):
    """Fetches and checks blobs like the real one; there is no engine that could load them."""

    def __init__(self, store: PromptStore) -> None:
        self._toy_store, self._toy_pool = store, CallPool("prompt_store_fetch")

    async def load(self, record: VersionRecord) -> ServableVersion:
        def fetch() -> Any:
            try:
                return _decoded(self._toy_store.fetch(record.digest))
            except DamagedBlob as error:
                raise VersionRefused(RefusalReason.DAMAGED, error.message) from error
            except NotFound as error:
                raise Unavailable("the blob is not there yet") from error

        blob = await self._toy_pool.call(fetch)
        return ServableVersion(
            record, blob.manifest, blob.prefix, cast(Any, None), prefix_id_of(record), datetime.now(UTC)
        )


class ToyService(GenerationService):
    """Finds, loads and holds versions like the real one; there is no engine that could generate."""

    def __init__(self, registry: PromptRegistry, loads: VersionLoads, watcher: PromptWatcher) -> None:
        self._registry, self._loads, self._watcher = registry, loads, watcher


class Server:
    """A process that answers calls while it is up and ready. Each life is a new node."""

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name, self.node, self.ready, self.num_lives = world, name, Node(name), False, 0
        self._open: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins a new life."""
        self.node, self.ready = Node(self.name), False
        self.num_lives += 1
        skews = (0.0, 0.0, self.world.rng.uniform(-120, 120))
        self.node.skew_seconds = 0.0 if self.world.is_crowded else self.world.rng.choice(skews)
        self._open = start_on(self.node, self._run())

    def kill(self) -> None:
        """Ends it like kill -9."""
        kill(self.node)

    async def drain(self) -> None:
        """Ends it in order."""
        raise NotImplementedError

    async def _run(self) -> None:
        try:
            await self._boot()
        except Exception as error:
            self.world.history.add("died", server=self.name, why=f"{type(error).__name__}: {error}")
            raise

    async def _boot(self) -> None:
        raise NotImplementedError

    async def _prompt_store(self, pool: CallPool) -> PromptStore:
        store = await pool.open(lambda: PromptStore(NetworkBackend(self.world.storage, self.world.storage_faults)))
        store._follower._lock = cast(Any, CooperativeLock())
        store._replicas._lock = cast(Any, CooperativeLock())
        return store

    async def call(self, caller: Caller, act: Callable[[Any], Awaitable[T]]) -> T:
        """`act(self)` on this server for the caller. Raises Unavailable if no answer comes; it may yet happen."""
        world = self.world
        await asyncio.sleep(world.rng.uniform(0.001, 0.01))
        if not (self.node.up and self.ready) or world.network_faults.strikes("lost request"):
            await asyncio.sleep(1)
            raise Unavailable(f"{self.name} can't be reached")

        async def handle() -> T:
            with calling(caller):
                return await act(self)

        work, answer = start_on(self.node, handle()), asyncio.get_running_loop().create_future()
        is_lost = world.network_faults.strikes("lost answer")
        work.add_done_callback(lambda done: None if is_lost or answer.done() else answer.set_result(done))
        work.add_done_callback(lambda done: done.cancelled() or done.exception())
        try:
            async with asyncio.timeout(CALL_SECONDS):
                done: asyncio.Task[T] = await answer
        except TimeoutError:
            work.cancel()  # as gRPC does at the deadline
            raise Unavailable(f"{self.name} did not answer") from None
        if done.cancelled():
            raise Unavailable(f"{self.name} is stopping")
        return done.result()


class Answering(Server):
    """A server that generates."""

    def start(self) -> None:
        self.calls: dict[Any, None] = {}
        """Those over its connections, between routers and replicas."""
        super().start()

    def stream(self, prompt: str, alias: str) -> AsyncGenerator[dict[str, Any], None]:
        """The tokens of an answer to the current caller; each says which life of which replica made it, from which
        version, and what that replica knew then.
        """
        raise NotImplementedError

    async def answer(self, prompt: str, alias: str) -> dict[str, Any]:
        """The facts of an answer; `end` is the error that ended it after its first token."""
        tokens, end = list[dict[str, Any]](), ""
        try:
            async with aclosing(self.stream(prompt, alias)) as stream:
                async for token in stream:
                    tokens.append(token)
        except SoftPromptError as error:
            if not tokens:
                raise
            end = type(error).__name__
        numbers = [token.pop("number") for token in tokens]
        return {**tokens[0], "numbers": numbers, "is_one": all(token == tokens[0] for token in tokens), "end": end}

    async def drain(self) -> None:
        """Takes no further calls, and ends after those that run."""
        self.ready = False
        deadline = asyncio.get_running_loop().time() + _GRACE_SECONDS
        while self.calls and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.5)
        self.kill()


class Replica(Answering):
    """A replica: the real watcher, registry and heartbeat; a toy engine. After a start, it is at times another one, at
    another address, as in Kubernetes.
    """

    token_seconds = TOKEN_SECONDS

    def start(self) -> None:
        if self.num_lives == 0 or self.world.rng.random() < 0.5:
            self.id = f"{self.name}-{self.num_lives}"
            self.address = f"{self.id}:50052"
        super().start()

    def kill(self) -> None:
        super().kill()
        for call in self.calls:
            call.break_off()

    async def drain(self) -> None:
        if self.ready:
            self._reporting.cancel()
            await asyncio.wait([self._reporting], timeout=3)
        await super().drain()

    async def _boot(self) -> None:
        pool = CallPool("prompt_store_watch")
        store = await self._prompt_store(pool)
        self.registry = PromptRegistry(lambda prefix_id: None, max_loaded=8)
        observer = NullPromptObserver()
        loads = VersionLoads(ToyLoader(store), self.registry, observer)
        self.watcher = PromptWatcher(store, self.registry, loads, observer, _POLL_SECONDS, pool)
        self._service = ToyService(self.registry, loads, self.watcher)
        heartbeat = Heartbeat(
            ReplicaDirectory(store.backend), self.registry, self.id, BASE_MODEL, _HEARTBEAT_SECONDS, pool, self.address
        )
        await self.watcher.start()
        self.ready = True
        self._reporting = asyncio.create_task(heartbeat.run())
        await self.watcher.run()

    async def stream(self, prompt: str, alias: str) -> AsyncGenerator[dict[str, Any], None]:
        request = InputRequest("hello", PromptReference(prompt, alias, None))
        async with self._service._source(request) as source:
            assert source.version is not None
            known = {"revision": self.registry.index.revision, "at": asyncio.get_running_loop().time()}
            token = {"replica": self.name, "life": self.num_lives, "version": source.version.record.version, **known}
            for number in range(1, NUM_TOKENS + 1):
                await asyncio.sleep(self.token_seconds)
                yield {**token, "number": number}
