"""Publishers that die at any write, stores with false acknowledgements, and eight concurrent publishers: no version is
lost, reused or half visible.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from shared.errors import Conflict, Unavailable
from shared.store import AliasMoved, PromptStore, StoreWatcher, VersionPublished, open_store
from shared.store.layout import LOG, log_key
from shared.store.memory import MemoryBackend
from tests.shared.prompt.blobs import make_blob
from tests.shared.store.faults import FaultyBackend, Killed, killed_at, unreliable
from tests.shared.store.processes import JOBS_EACH, NUM_PUBLISHERS, PROMPT


def check_whole(store: PromptStore) -> None:
    """Every version has its blob, numbers have no gaps, no job has two versions, and the log matches the index."""
    index = store.refresh()
    index.check_integrity()
    records = list(index.versions())
    assert len({record.job for record in records}) == len(records)
    for prompt in index.prompts.values():
        assert sorted(prompt.versions) == list(range(1, prompt.latest_version + 1))
    for record in records:
        store.fetch(record.digest)
    assert PromptStore(store.backend).index() == index


def die_while(act: Callable[[PromptStore], object], number: int, after: bool) -> tuple[MemoryBackend, bool]:
    """A store in which `act` died at its write of this number, and whether it got that far."""
    memory = MemoryBackend()
    PromptStore(memory).publish(PROMPT, make_blob(seed=1), job="first")
    PromptStore(memory).publish(PROMPT, make_blob(seed=2), job="second")
    faulty = FaultyBackend(memory)
    store = PromptStore(faulty)
    faulty.on_write = killed_at(number, after)
    try:
        act(store)
    except Killed:
        return memory, True
    return memory, False


@pytest.mark.parametrize("after", [False, True])
def test_a_publisher_that_dies_at_any_write_leaves_the_old_state_or_the_new(after: bool) -> None:
    def publish(store: PromptStore) -> object:
        return store.publish(PROMPT, make_blob(seed=3), job="third", expected=2)

    number = 1
    while True:
        memory, died = die_while(publish, number, after)
        store = PromptStore(memory)
        prompt = store.index().prompt(PROMPT)
        published, moved = prompt.latest_version == 3, str(prompt.aliases["default"]) == "3"
        assert published == moved, "a version and its alias become visible together"
        check_whole(store)
        if not died:
            break
        store.publish(PROMPT, make_blob(seed=3), job="third")
        assert store.index().prompt(PROMPT).latest_version == 3
        check_whole(store)
        number += 1
    assert number > 2, "a publish is at least a blob and a log entry"


@pytest.mark.parametrize("after", [False, True])
def test_dying_while_the_log_is_cut_loses_nothing(after: bool) -> None:
    number = 1
    while True:
        memory, died = die_while(lambda store: store.truncate_log(keep=1), number, after)
        store = PromptStore(memory)
        assert store.index().revision == 2
        check_whole(store)
        store.publish(PROMPT, make_blob(seed=3), job="third")
        store.truncate_log(keep=1)
        check_whole(store)
        if not died:
            break
        number += 1
    assert number > 3


@pytest.mark.parametrize("seed", range(6))
def test_lost_acknowledgements_and_phantom_conflicts(seed: int) -> None:
    memory = MemoryBackend()
    faulty = FaultyBackend(memory)
    store = PromptStore(faulty)
    faulty.on_write = unreliable(seed, share=0.15)
    for number in range(15):
        while True:
            try:
                record = store.publish(PROMPT, make_blob(seed=number), job=f"job-{number}")
                break
            except Unavailable:
                continue
        assert record.version == number + 1
    check_whole(PromptStore(memory))
    assert PromptStore(memory).index().revision == 15


def test_an_alias_move_whose_acknowledgement_is_lost_has_happened(
    memory_store: tuple[FaultyBackend, PromptStore],
) -> None:
    faulty, store = memory_store
    store.publish(PROMPT, make_blob(seed=1), job="1")
    store.publish(PROMPT, make_blob(seed=2), job="2")

    def lose_acknowledgement(_number: int, _key: str, write: Callable[[], bool]) -> bool:
        write()
        raise Unavailable("lost")

    faulty.on_write = lose_acknowledgement
    assert store.set_alias(PROMPT, "default", 1, expected=2) == 3


def test_a_conflict_reported_for_a_write_that_comes_through_late(
    memory_store: tuple[FaultyBackend, PromptStore],
) -> None:
    faulty, store = memory_store
    store.publish(PROMPT, make_blob(seed=1), job="1")
    store.publish(PROMPT, make_blob(seed=2), job="2")
    late: list[Callable[[], bool]] = []

    def delay(number: int, _key: str, write: Callable[[], bool]) -> bool:
        late.append(write)
        return False

    read = faulty.get

    def read_then_land(key: str, max_bytes: int) -> bytes | None:
        found = read(key, max_bytes)
        if late and key == log_key(3):
            late.pop()()
        return found

    faulty.on_write = delay
    faulty.get = read_then_land  # type: ignore[method-assign]
    assert store.set_alias(PROMPT, "default", 1, expected=2) == 3
    assert store.refresh().revision == 3


def test_a_writer_that_slept_through_a_cut_does_not_write_into_the_gap(
    memory_store: tuple[FaultyBackend, PromptStore],
) -> None:
    faulty, sleeper = memory_store
    awake = PromptStore(faulty.inner)
    for number in range(5):
        awake.publish(PROMPT, make_blob(seed=number), job=f"job-{number}")
    awake.truncate_log(keep=1)
    assert sleeper.index().revision == 0
    reader_that_slept = PromptStore(faulty.inner)
    record = sleeper.publish(PROMPT, make_blob(seed=9), job="sleeper")
    assert (record.version, record.revision) == (6, 6)
    assert [info.key for info in faulty.list(LOG)] == [log_key(5), log_key(6)]
    assert reader_that_slept.refresh() == awake.refresh() == sleeper.refresh()


def test_a_reader_does_not_believe_an_entry_below_the_cut(memory_store: tuple[FaultyBackend, PromptStore]) -> None:
    faulty, sleeper = memory_store
    awake = PromptStore(faulty.inner)
    for number in range(5):
        awake.publish(PROMPT, make_blob(seed=number), job=f"job-{number}")
    entry = faulty.inner.get(log_key(1), 1 << 20)
    assert entry is not None
    awake.truncate_log(keep=1)
    faulty.inner.create(log_key(1), entry.replace(b"job-0", b"job-x"))  # of a writer that died before it saw the cut
    assert sleeper.refresh() == awake.index()
    assert sleeper.index().prompt(PROMPT).versions[1].job == "job-0"


def test_a_store_that_is_away_changes_nothing(memory_store: tuple[FaultyBackend, PromptStore]) -> None:
    faulty, store = memory_store
    store.publish(PROMPT, make_blob(seed=1), job="1")
    before = store.index()
    faulty.unavailable = True
    with pytest.raises(Unavailable):
        store.publish(PROMPT, make_blob(seed=2), job="2")
    with pytest.raises(Unavailable):
        store.set_alias(PROMPT, "default", None)
    with pytest.raises(Unavailable):
        store.refresh()
    assert store.index() is before
    faulty.unavailable = False
    assert store.refresh() == before
    with pytest.raises(Conflict):
        store.set_alias(PROMPT, "default", 1, expected=7)


def test_killed_at_every_change_to_the_file_system(tmp_path: Path) -> None:
    url = str(tmp_path / "store")
    open_store(url)
    result = subprocess.run(
        [sys.executable, "-m", "tests.shared.store.processes", "killed", url],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert int(result.stdout.split()[-1]) > 10
    store = open_store(url)
    check_whole(store)
    assert store.index().prompt(PROMPT).latest_version >= 1


async def test_eight_publishers_and_a_watcher(tmp_path: Path) -> None:
    url = str(tmp_path / "store")
    store = open_store(url)
    publishers = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.shared.store.processes", "crowd", url
    )
    seen: list[VersionPublished] = []
    async for changes in StoreWatcher(store, since=0, poll_seconds=0.01):
        assert not changes.restarted
        for commit in changes.commits:
            assert isinstance(commit.ops[0], VersionPublished)
            assert isinstance(commit.ops[1], AliasMoved)
            store.fetch(commit.ops[0].digest)
            seen.append(commit.ops[0])
        if len(seen) == NUM_PUBLISHERS * JOBS_EACH:
            break
    assert await publishers.wait() == 0
    assert [op.version for op in seen] == list(range(1, len(seen) + 1))
    assert {op.job for op in seen} == {
        f"job-{number}-{job}" for number in range(NUM_PUBLISHERS) for job in range(JOBS_EACH)
    }
    assert store.refresh().revision == len(seen)
    check_whole(store)


@pytest.fixture
def memory_store() -> tuple[FaultyBackend, PromptStore]:
    faulty = FaultyBackend(MemoryBackend())
    return faulty, PromptStore(faulty)
