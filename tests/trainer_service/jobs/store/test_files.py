"""Files of jobs in a directory: complete or absent, the newest attempt wins, damage is detected. `test_job_store` tests
those in a database.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from shared.errors import Unavailable
from trainer_service.jobs.store.files import DirectoryFiles, FileKind


def test_save_load_remove(tmp_path: Path) -> None:
    files = DirectoryFiles(tmp_path / "files")
    assert files.load("01a", FileKind.CHECKPOINT) is None
    files.save("01a", FileKind.CHECKPOINT, 1, b"first")
    files.save("01a", FileKind.CHECKPOINT, 2, b"second")
    files.save("01a", FileKind.CHECKPOINT, 1, b"late words of the first attempt")
    files.save("01a", FileKind.OUTCOME, 2, b"")
    assert DirectoryFiles(tmp_path / "files").load("01a", FileKind.CHECKPOINT) == b"second"
    assert files.load("01a", FileKind.OUTCOME) == b""
    files.remove("01a")
    files.remove("01a")
    assert files.load("01a", FileKind.CHECKPOINT) is None


def test_damage_at_any_place_is_noticed(tmp_path: Path) -> None:
    files = DirectoryFiles(tmp_path)
    files.save("01a", FileKind.CHECKPOINT, 1, b"state")
    path = tmp_path / "01a" / "checkpoint"
    whole = path.read_bytes()
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        assert files.load("01a", FileKind.CHECKPOINT) is None
    for place in range(8, len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert files.load("01a", FileKind.CHECKPOINT) is None


def test_a_failed_write_leaves_the_old_one_and_no_rubbish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = DirectoryFiles(tmp_path)
    files.save("01a", FileKind.CHECKPOINT, 1, b"old")

    def no_space(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", no_space)
    with pytest.raises(Unavailable):
        files.save("01a", FileKind.CHECKPOINT, 1, b"new")
    assert files.load("01a", FileKind.CHECKPOINT) == b"old"
    assert [path.name for path in (tmp_path / "01a").iterdir()] == ["checkpoint"]


def test_ids_are_not_paths(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a job id"):
        DirectoryFiles(tmp_path).save("../out", FileKind.CHECKPOINT, 1, b"")
