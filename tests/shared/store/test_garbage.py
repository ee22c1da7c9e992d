"""Garbage collection of blobs that concurrent publishers are about to name."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest

from shared.prompt.digest import digest_of
from shared.store import PromptStore
from shared.store.base import ObjectInfo
from shared.store.layout import blob_key
from shared.store.memory import MemoryBackend
from tests.shared.prompt.blobs import make_blob
from tests.shared.store.faults import FaultyBackend

PROMPT = "support-tone"
BLOB = make_blob(seed=5)
DIGEST = digest_of(BLOB)
KEY = blob_key(DIGEST)


class OldBlobs(MemoryBackend):
    """Makes every blob look two days old, except those in `young`."""

    def __init__(self) -> None:
        super().__init__()
        self.young: set[str] = set()

    def put(self, key: str, data: bytes) -> None:
        super().put(key, data)
        self.young.add(key)

    def head(self, key: str) -> ObjectInfo | None:
        info = super().head(key)
        return info and self._aged(info)

    def list(self, folder: str) -> list[ObjectInfo]:
        return [self._aged(info) for info in super().list(folder)]

    def _aged(self, info: ObjectInfo) -> ObjectInfo:
        age = timedelta(0 if info.key in self.young else 2)
        return ObjectInfo(info.key, info.size_bytes, info.modified_at - age)


@pytest.fixture
def memory() -> OldBlobs:
    """A store with a blob whose publisher died after the upload, two days ago."""
    backend = OldBlobs()
    backend.create(KEY, BLOB)
    return backend


def collecting_while(memory: OldBlobs, moment: Callable[[str, bool], bool], act: Callable[[], object]) -> list[str]:
    """Runs a collection and calls `act` before or after the first write for which `moment` is true."""
    faulty = FaultyBackend(memory)
    collector = PromptStore(faulty)
    acts = [act]

    def on_write(_number: int, key: str, write: Callable[[], bool]) -> bool:
        if acts and moment(key, False):
            acts.pop()()
        done = write()
        if acts and moment(key, True):
            acts.pop()()
        return done

    faulty.on_write = on_write
    collected = collector.collect_unreferenced_blobs()
    assert not acts, "the moment never came"
    return collected


def test_an_orphan_goes(memory: OldBlobs) -> None:
    assert PromptStore(memory).collect_unreferenced_blobs() == [DIGEST]
    assert memory.get(KEY, 1 << 20) is None


def test_publishing_it_again_makes_it_young(memory: OldBlobs) -> None:
    publisher = FaultyBackend(memory)
    store = PromptStore(publisher)
    collected: list[str] = []

    def collect_before_the_commit(_number: int, key: str, write: Callable[[], bool]) -> bool:
        if key.startswith("log/"):
            collected.extend(PromptStore(memory).collect_unreferenced_blobs())
        return write()

    publisher.on_write = collect_before_the_commit
    record = store.publish(PROMPT, BLOB, job="job")
    assert collected == []
    assert store.fetch(record.digest) == BLOB


def test_a_publisher_puts_back_what_was_removed_between_its_upload_and_its_commit(memory: OldBlobs) -> None:
    publisher = FaultyBackend(memory)
    store = PromptStore(publisher)

    def remove_before_the_commit(_number: int, key: str, write: Callable[[], bool]) -> bool:
        if key.startswith("log/"):
            memory.delete(KEY)
        return write()

    publisher.on_write = remove_before_the_commit
    record = store.publish(PROMPT, BLOB, job="job")
    assert store.fetch(record.digest) == BLOB


@pytest.mark.parametrize("after", [False, True])
def test_a_collector_puts_back_what_was_published_while_it_removed(memory: OldBlobs, after: bool) -> None:
    def publish() -> None:
        PromptStore(memory).publish(PROMPT, BLOB, job="job")

    assert collecting_while(memory, lambda key, done: key == KEY and done == after, publish) == []
    store = PromptStore(memory)
    assert store.fetch(store.index().prompt(PROMPT).versions[1].digest) == BLOB


def test_a_blob_of_two_versions_stays_until_both_are_gone(memory: OldBlobs) -> None:
    store = PromptStore(memory)
    store.publish(PROMPT, BLOB, job="first")
    store.publish(PROMPT, BLOB, job="second")
    memory.young.clear()
    store.delete_version(PROMPT, 1)
    assert store.collect_unreferenced_blobs(grace_seconds=-1) == []
    store.set_alias(PROMPT, "default", None)
    store.delete_version(PROMPT, 2)
    assert store.collect_unreferenced_blobs() == [], "replicas may not have heard of the deletion"
    assert store.collect_unreferenced_blobs(grace_seconds=-1) == [DIGEST]
