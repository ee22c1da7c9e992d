"""An object store as its clients see it: create-if-absent, over a network that loses requests and answers."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from shared.errors import Unavailable
from shared.store.base import ObjectBackend, ObjectInfo
from shared.store.commit import Commit, VersionDeleted, VersionPublished, decode_commit
from shared.store.layout import BLOBS, LOG, REPLICAS, blob_key, revision_in
from shared.store.local import LocalBackend
from shared.store.memory import MemoryBackend
from tests.simulation.disk import SimulatedDisk
from tests.simulation.history import History
from tests.simulation.loop import Node, by_true_clock, current_node, pause_inside

T = TypeVar("T")

_ROOT = Path("/store")

_AIMED_CHANCE = 0.5


class _AnswerLost(Unavailable):
    """The object store did what it was asked to."""


class Storage:
    """What the store durably has. `commits` are all log entries that were ever written, also truncated ones."""

    def __init__(self, history: History, rng: random.Random, *, is_directory: bool = False) -> None:
        """`is_directory`: a directory of one machine, on which all processes run, and not an object store."""
        self._history = history
        self.disk = SimulatedDisk(rng, self._named) if is_directory else None
        self.commits: dict[int, Commit] = {}
        self._digests: dict[tuple[str, int], str] = {}
        self._awaited: dict[str, list[asyncio.Future[str]]] = {}
        self.objects: ObjectBackend = LocalBackend(_ROOT, self.disk) if self.disk else MemoryBackend()

    def lose_power(self) -> int:
        """What was not synced is lost, or cut, or there. Returns the newest revision that is left."""
        assert self.disk is not None
        for path in self.disk.lose_power():
            revision = revision_in(path.name)
            if revision is not None and path.parent == _ROOT / LOG:
                self.commits.pop(revision, None)
        return max(self.commits, default=0)

    async def next(self, moment: str) -> str:
        """The next node that has "uploaded" a blob, is "committing" (will write to the log), has "committed", is
        "starting" (as a replica, whose store is open), or has "named" a file of the directory, which is not durable
        yet.
        """
        reached = asyncio.get_running_loop().create_future()
        self._awaited.setdefault(moment, []).append(reached)
        return await reached

    def reached(self, moment: str, node: Node | None) -> None:
        """A node has come to this point. Whatever awaited it goes on before the node does."""
        for waiting in self._awaited.pop(moment, []):
            if node is not None and not waiting.done():
                waiting.set_result(node.name)

    def create(self, key: str, data: bytes) -> bool:
        created = self.objects.create(key, data)
        if created and self.disk is None:
            self._note(key, data)
        return created

    def put(self, key: str, data: bytes) -> None:
        self.objects.put(key, data)
        if key.startswith(LOG) and (revision := revision_in(key)) is not None:
            self.commits[revision] = decode_commit(data, revision)

    def _named(self, path: Path, data: bytes) -> None:
        """A file of the directory got a name, by which others find it before its writer has synced the folder."""
        self._note(path.relative_to(_ROOT).as_posix(), data)
        self.reached("named", current_node())

    def _note(self, key: str, data: bytes) -> None:
        revision = revision_in(key) if key.startswith(LOG) else None
        # A later writer of the same number missed a truncation: it must notice that, and commit again.
        if revision is not None and revision not in self.commits:
            self.commits[revision] = commit = decode_commit(data, revision)
            self._note_versions_without_blobs(commit)

    def _note_versions_without_blobs(self, commit: Commit) -> None:
        """Retention deletes most versions before a life ends: the blob of each must be there until then."""
        for op in commit.ops:
            if isinstance(op, VersionPublished):
                self._digests[op.prompt, op.version] = op.digest
            if isinstance(op, VersionDeleted):
                digest = self._digests.get((op.prompt, op.version))
                if digest is not None and self.objects.head(blob_key(digest)) is None:
                    self._history.add("gone", prompt=op.prompt, version=op.version)


class StorageFaults:
    """How badly the network between the nodes and the store behaves now."""

    def __init__(self, rng: random.Random) -> None:
        self.rng, self.chance, self.cut_off = rng, 0.0, set[str]()
        self.aim = ""
        """The name of a function, or `LOG`: writes to the log. Half of these calls are struck, however rare."""
        self.is_full = False
        """Whether nothing can be written."""
        self.counts: dict[str, int] = {}

    def strikes(self, kind: str, share: float = 1.0, call: str = "") -> bool:
        """Whether this fault happens to the current call, of the function `call`."""
        chance = _AIMED_CHANCE if call and call == self.aim else self.chance * share
        if not chance or self.rng.random() >= chance:
            return False
        self.counts[kind] = self.counts.get(kind, 0) + 1
        return True


class NetworkBackend:
    """One node's `ObjectBackend`. Call it in a simulated pool of threads."""

    poll_seconds = 0.5

    def __init__(self, storage: Storage, faults: StorageFaults) -> None:
        self._storage, self._faults = storage, faults

    def get(self, key: str, max_bytes: int) -> bytes | None:
        return self._call(lambda: self._storage.objects.get(key, max_bytes))

    def create(self, key: str, data: bytes) -> bool:
        if self._faults.strikes("phantom conflict", 0.3):  # S3 answers 409 to concurrent conditional writes
            self._pause()
            return False
        self._check_space()
        node = current_node()
        if key.startswith(LOG):
            self._storage.reached("committing", node)

        def act() -> bool:
            return self._storage.create(key, data)

        try:
            created = self._call(act, write=key)
        except _AnswerLost:
            if self._faults.rng.random() < 0.5:
                raise
            created = self._call(act, write=key)  # S3's client repeats: its object exists
        if key.startswith((LOG, BLOBS)):
            self._storage.reached("committed" if key.startswith(LOG) else "uploaded", node)
        return created

    def put(self, key: str, data: bytes) -> None:
        self._check_space()
        self._call(lambda: self._storage.put(key, data), write=key)

    def head(self, key: str) -> ObjectInfo | None:
        return self._call(lambda: self._storage.objects.head(key))

    def list(self, folder: str) -> list[ObjectInfo]:
        if folder == REPLICAS:
            self._storage.reached("starting", current_node())
        if self._faults.strikes("slow list"):
            pause_inside(self._faults.rng.uniform(0.5, 5))
        return self._call(lambda: self._storage.objects.list(folder))

    def delete(self, key: str) -> None:
        self._call(lambda: self._storage.objects.delete(key), write=key)

    def sweep(self) -> int:
        return 0

    def close(self) -> None:
        """The store outlives its clients."""

    def _check_space(self) -> None:
        if self._faults.is_full:
            self._pause()
            raise Unavailable("the object store has no space left")

    def _pause(self) -> None:
        pause_inside(self._faults.rng.uniform(0.001, 0.03))

    def _call(self, act: Callable[[], T], write: str = "") -> T:
        """`write`: what it changes, so that the process may end before it knows the answer."""
        faults, node = self._faults, current_node()
        self._pause()
        if node is not None and node.name in faults.cut_off:
            pause_inside(1)
            raise Unavailable("the object store can't be reached")
        if faults.strikes("lost request"):
            raise Unavailable("the object store did not get the request")
        if faults.strikes("hung call", 0.3):
            pause_inside(faults.rng.uniform(5, 60))
        if self._storage.disk is not None:  # which has its own clock, and during whose calls other processes act
            result = act()
        else:
            with by_true_clock():
                result = act()
        if write:
            self._pause()
        if faults.strikes("lost answer", call=LOG if write.startswith(LOG) else ""):
            raise _AnswerLost("the object store's answer was lost")
        return result
