"""The callers' data on disk is closed to other users whatever the umask, and open to the trainer itself."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.store import open_store
from tests.shared.prompt.blobs import make_blob
from trainer_service.datasets.roots import DatasetRoots
from trainer_service.datasets.store import DatasetStore
from trainer_service.datasets.upload import UploadLimits
from trainer_service.jobs.store.files import DirectoryFiles, FileKind
from trainer_service.jobs.store.job_store import JobStore


@pytest.fixture(params=[0o000, 0o022, 0o077], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_jobs_datasets_and_checkpoints(umask: int, tmp_path: Path) -> None:
    store = JobStore.open(f"sqlite:///{tmp_path / 'jobs.sqlite3'}")
    files = DirectoryFiles(tmp_path / "checkpoints")
    files.save("job", FileKind.CHECKPOINT, 1, b"state")
    DatasetStore(tmp_path / "datasets", UploadLimits(), DatasetRoots(()))
    for path in tmp_path.rglob("*"):
        if path.parent == tmp_path:
            assert mode(path) & 0o007 == 0, (path, oct(mode(path)))
            assert mode(path) & 0o600 == 0o600
    assert {path.name for path in tmp_path.glob("jobs.sqlite3*")} >= {
        "jobs.sqlite3",
        "jobs.sqlite3-wal",
        "jobs.sqlite3-shm",
    }
    assert files.load("job", FileKind.CHECKPOINT) is not None
    store.close()


def test_a_database_that_an_earlier_release_left_open_to_others_is_closed(tmp_path: Path) -> None:
    JobStore.open(f"sqlite:///{tmp_path / 'jobs.sqlite3'}").close()
    (tmp_path / "jobs.sqlite3").chmod(0o666)
    JobStore.open(f"sqlite:///{tmp_path / 'jobs.sqlite3'}").close()
    assert mode(tmp_path / "jobs.sqlite3") == 0o660


def test_a_prompt_store_is_open_to_those_whom_the_umask_lets_in(umask: int, tmp_path: Path) -> None:
    """Replicas under another user read it."""
    open_store(str(tmp_path / "store")).publish("support-tone", make_blob(), job="job")
    for path in (tmp_path / "store").rglob("*"):
        assert mode(path) & 0o444 == 0o444 & ~umask, (path, oct(mode(path)))
