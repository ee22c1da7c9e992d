"""Failures of a directory as store: volumes that vanish, planted links, leftovers of killed processes."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from shared.errors import NotFound, PreconditionFailed, Unavailable
from shared.store import PromptStore, open_store
from shared.store.layout import blob_key, log_key
from shared.store.local import LocalBackend
from shared.store.usage import SegmentId
from tests.shared.prompt.blobs import make_blob

PROMPT = "support-tone"


def test_a_volume_that_goes_away_is_unavailable_and_not_empty(tmp_path: Path, local_store: PromptStore) -> None:
    local_store.publish(PROMPT, make_blob(), job="job")
    root = tmp_path / "store"
    root.rename(tmp_path / "elsewhere")
    with pytest.raises(Unavailable):
        local_store.refresh()
    root.mkdir()  # the empty mount point
    with pytest.raises(Unavailable):
        local_store.refresh()
    with pytest.raises(Unavailable):
        local_store.publish(PROMPT, make_blob(seed=1), job="job-1")
    assert list(root.iterdir()) == [], "nothing is written beside the volume"
    root.rmdir()
    (tmp_path / "elsewhere").rename(root)
    assert local_store.publish(PROMPT, make_blob(seed=1), job="job-1").version == 2


def test_empty_folders_of_ended_journals_are_removed(tmp_path: Path) -> None:
    backend = LocalBackend(tmp_path)
    keys = [SegmentId(digit * 32, 1).key for digit in "123"]
    for key in keys:
        backend.create(key, b"")
    for key in keys[:2]:
        backend.delete(key)
    for folder in (tmp_path / keys[0], tmp_path / keys[2]):
        os.utime(folder.parent, (0, 0))
    assert backend.sweep() == 1
    assert sorted(path.name[0] for path in (tmp_path / "usage").iterdir()) == ["2", "3"]
    assert backend.create(keys[0], b"")
    assert len(backend.list("usage/")) == 2


def test_a_message_names_no_path(tmp_path: Path, local_store: PromptStore) -> None:
    (tmp_path / "store").rename(tmp_path / "elsewhere")
    with pytest.raises(Unavailable) as caught:
        local_store.refresh()
    assert str(tmp_path) not in caught.value.message


def test_planted_links_and_folders_are_not_read(tmp_path: Path, local_store: PromptStore) -> None:
    record = local_store.publish(PROMPT, make_blob(), job="job")
    secret = tmp_path / "secret"
    secret.write_bytes(make_blob())
    blob = tmp_path / "store" / blob_key(record.digest)
    blob.unlink()
    blob.symlink_to(secret)
    with pytest.raises(Unavailable):
        local_store.fetch(record.digest)
    blob.unlink()
    os.mkfifo(blob)
    with pytest.raises(Unavailable):
        local_store.fetch(record.digest)
    blob.unlink()
    with pytest.raises(NotFound):
        local_store.fetch(record.digest)


def test_leftovers_of_killed_processes_are_swept(tmp_path: Path, local_store: PromptStore) -> None:
    old, young = (tmp_path / "store" / "tmp" / name for name in ("1-0-dead", "2-0-beef"))
    for path in (old, young):
        path.write_bytes(b"half a blo")
    os.utime(old, (time.time() - 7200, time.time() - 7200))
    open_store(str(tmp_path / "store"))
    assert [path.name for path in (tmp_path / "store" / "tmp").iterdir()] == [young.name]
    assert local_store.refresh().revision == 0


def test_a_file_system_without_hard_links_is_refused(local_store: PromptStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    with pytest.raises(PreconditionFailed, match="hard links"):
        local_store.publish(PROMPT, make_blob(), job="job")


def test_a_full_disk_publishes_nothing(
    tmp_path: Path, local_store: PromptStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fsync(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(Unavailable, match="No space left"):
            local_store.publish(PROMPT, make_blob(), job="job")
    assert local_store.refresh().revision == 0
    assert list((tmp_path / "store" / "tmp").iterdir()) == []


def test_file_and_folder_are_synced_before_an_entry_is_acknowledged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = LocalBackend(tmp_path / "store")
    backend.create(log_key(1), b"first")
    steps: list[str] = []
    fsync, link = os.fsync, os.link

    def note_fsync(handle: int) -> None:
        steps.append(f"sync {Path(os.readlink(f'/proc/self/fd/{handle}')).parent.name or 'root'}")
        fsync(handle)

    def note_link(source: Path, target: Path, **options: bool) -> None:
        steps.append("link")
        link(source, target, **options)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "link", note_link)
    assert backend.create(log_key(2), b"second")
    assert steps == ["sync tmp", "link", "sync store"]
