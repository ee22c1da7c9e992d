"""A copy of a store: the same versions under the same numbers, continued after an interruption."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest

from shared.errors import Conflict, InvalidInput, NotFound
from shared.store import AliasTarget, PromptStore, StoreIndex, open_store
from shared.store.base import ObjectBackend
from shared.store.copy import copy_store
from shared.store.layout import LOG, blob_key
from shared.store.memory import MemoryBackend
from shared.store.open import open_existing
from tests.shared.prompt.blobs import make_blob
from tests.shared.store.faults import FaultyBackend, Killed, killed_at


def publish(store: PromptStore, prompt: str, *numbers: int, alias: str | None = "default") -> None:
    for number in numbers:
        store.publish(prompt, make_blob(prompt, number), job=f"tuningJobs/{prompt}-{number}", alias=alias)


@pytest.fixture
def source(tmp_path: Path) -> PromptStore:
    store = open_store(str(tmp_path / "source"))
    publish(store, "tone", 1, 2, 3, 4)
    publish(store, "labels", 1, 2, alias=None)
    store.set_alias("tone", "canary", [AliasTarget(1, 9), AliasTarget(3, 1)])
    store.set_alias("tone", "default", 3)
    store.delete_version("tone", 2)
    store.delete_version("tone", 4)
    return store


def content(index: StoreIndex) -> dict[str, object]:
    """What a copy keeps: everything but revisions and times."""
    return {
        prompt.name: (
            prompt.latest_version,
            [replace(record, created_at="", revision=0) for _, record in sorted(prompt.versions.items())],
            {alias.name: alias.targets for alias in prompt.aliases.values()},
            [(stone.version, stone.job) for stone in prompt.tombstones],
        )
        for prompt in index.prompts.values()
    }


def test_a_copy_has_the_same_numbers_digests_jobs_and_aliases(source: PromptStore, backend: ObjectBackend) -> None:
    target = PromptStore(backend)
    report = copy_store(source, target)
    fresh = PromptStore(backend)
    assert content(fresh.index()) == content(source.index())
    assert all(fresh.fetch(record.digest) for record in fresh.index().versions())
    assert (report.versions_copied, report.aliases_moved) == (4, 2)

    revision = fresh.index().revision
    again = copy_store(source, fresh)
    assert (again.versions_copied, again.versions_present, again.aliases_moved) == (0, 4, 0)
    assert fresh.refresh().revision == revision

    publish(source, "tone", 5)
    assert copy_store(source, target).versions_copied == 1
    assert content(target.index()) == content(source.index())


@pytest.mark.parametrize("after", [False, True])
def test_a_killed_copy_continues_and_its_target_is_whole_at_each_step(source: PromptStore, after: bool) -> None:
    """Each process dies at its fourth write, until one has fewer to make."""
    place, copies = MemoryBackend(), 0
    while copies < 30:
        copies += 1
        backend = FaultyBackend(place)
        target = PromptStore(backend)
        backend.on_write = killed_at(backend.num_writes + 4, after)
        try:
            copy_store(source, target)
        except Killed:
            seen = PromptStore(place).index()
            seen.check_integrity()
            assert all(place.head(blob_key(record.digest)) for record in seen.versions())
        else:
            break
    assert copies > 3
    assert content(PromptStore(place).index()) == content(source.index())


def test_a_source_that_never_rests_is_copied_up_to_a_moment(source: PromptStore) -> None:
    target, numbers = PromptStore(MemoryBackend()), itertools.count(5)

    def published_meanwhile(done: int, total: int) -> None:
        if done == total:
            publish(source, "tone", next(numbers))

    copy_store(source, target, progress=published_meanwhile)
    target.index().check_integrity()
    assert target.index().prompt("tone").aliases["default"].targets[0].version >= 5
    copy_store(source, target)
    assert content(target.index()) == content(source.refresh())


def test_other_versions_under_the_same_numbers_are_refused_before_anything_is_written(
    source: PromptStore, backend: ObjectBackend
) -> None:
    target = PromptStore(backend)
    publish(target, "tone", 7)
    before = len(backend.list(LOG))
    with pytest.raises(Conflict, match="another prompts/tone/versions/1"):
        copy_store(source, target)
    assert len(backend.list(LOG)) == before


def test_a_target_that_went_on_alone_is_refused(source: PromptStore, backend: ObjectBackend) -> None:
    target = PromptStore(backend)
    copy_store(source, target)
    publish(target, "labels", 9, alias=None)
    with pytest.raises(Conflict, match="prompts/labels/versions/3"):
        copy_store(source, target, prune=True)


def test_nothing_is_pruned_unless_asked(source: PromptStore, backend: ObjectBackend) -> None:
    target = PromptStore(backend)
    copy_store(source, target)
    publish(target, "only-here", 1)
    target.set_alias("labels", "old", 1)
    source.delete_version("labels", 1)
    copy_store(source, target)
    assert "old" in target.index().prompt("labels").aliases
    assert target.index().prompt("only-here").versions

    report = copy_store(source, target, prune=True)
    assert (report.versions_pruned, report.aliases_pruned) == (2, 2)
    assert [sorted(prompt.versions) for prompt in target.index().prompts.values() if prompt.versions] == [[1, 3], [2]]


def test_a_version_that_the_target_deleted_is_skipped_unless_an_alias_names_it(
    source: PromptStore, backend: ObjectBackend
) -> None:
    target = PromptStore(backend)
    copy_store(source, target)
    target.delete_version("labels", 1)
    assert copy_store(source, target).versions_skipped == 1
    source.set_alias("labels", "default", 1)
    with pytest.raises(Conflict, match="labels@default names it"):
        copy_store(source, target)


def test_missing_and_damaged_blobs_are_written_again(source: PromptStore, backend: ObjectBackend) -> None:
    target = PromptStore(backend)
    copy_store(source, target)
    missing, damaged = (record.digest for record in target.index().prompt("labels").versions.values())
    backend.delete(blob_key(missing))
    backend.put(blob_key(damaged), bytes(len(source.fetch(damaged))))
    assert copy_store(source, target).blobs_repaired == 1
    assert target.fetch(missing)
    assert copy_store(source, target, check=True).blobs_repaired == 1
    assert target.fetch(damaged)


def test_a_store_is_not_copied_into_itself(source: PromptStore, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="same store"):
        copy_store(source, open_store(str(tmp_path / "source")))


def test_a_directory_that_is_no_store_stays_empty(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for url in (str(tmp_path / "empty"), f"file://{tmp_path}/none"):
        with pytest.raises(NotFound, match="prompt store"):
            open_existing(url)
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]
    assert not list((tmp_path / "empty").iterdir())
