"""Stamps of files: a change is detected although size and time are equal, and so is a file that could have changed
unnoticed.
"""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

from shared.errors import Unavailable
from shared.file_digest import sha256_of
from shared.model import fingerprint
from shared.security import watched_file
from shared.security.watched_file import WatchedFile

MINUTE_NS = 60 * 10**9


@pytest.fixture
def model_dir(tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Path(shutil.copytree(tiny_model_dir, tmp_path / "model", ignore=shutil.ignore_patterns(fingerprint.FILE)))


@pytest.fixture
def hashings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    names: list[str] = []

    def noted(path: Path) -> str:
        names.append(path.name)
        return sha256_of(path)

    monkeypatch.setattr(fingerprint, "sha256_of", noted)
    return names


def at(monkeypatch: pytest.MonkeyPatch, offset_ns: int) -> None:
    """Shifts the clock of this machine relative to the file system's, and stops it."""
    now_ns = time.time_ns() + offset_ns
    monkeypatch.setattr(fingerprint, "_now_ns", lambda: now_ns)
    monkeypatch.setattr(watched_file, "time_ns", lambda: now_ns)


def flip(path: Path, *, in_place: bool) -> None:
    """Other bytes of the same size and with the same modification time, as `cp -p` and `rsync -t` leave them."""
    status = path.stat()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    if not in_place:
        path.unlink()
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_weights_with_the_same_size_and_time_are_hashed_again(
    model_dir: Path, hashings: list[str], monkeypatch: pytest.MonkeyPatch, name: str, in_place: bool
) -> None:
    at(monkeypatch, MINUTE_NS)
    before = fingerprint.of(model_dir)
    hashings.clear()
    assert fingerprint.of(model_dir) == before
    assert hashings == []
    flip(model_dir / name, in_place=in_place)
    assert fingerprint.of(model_dir).fingerprint != before.fingerprint


def test_files_that_changed_a_moment_ago_or_in_the_future_are_hashed_at_every_look(
    model_dir: Path, hashings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for offset_ns in (0, -MINUTE_NS):  # a file server's clock that is ahead by a minute
        at(monkeypatch, offset_ns)
        first = fingerprint.of(model_dir)
        hashings.clear()
        assert fingerprint.of(model_dir).fingerprint == first.fingerprint
        assert "model.safetensors" in hashings
    at(monkeypatch, MINUTE_NS)
    fingerprint.of(model_dir)
    hashings.clear()
    fingerprint.of(model_dir)
    assert hashings == []


def test_a_time_set_in_the_future_is_no_reason_to_hash_again(
    model_dir: Path, hashings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    os.utime(model_dir / "model.safetensors", (4e9, 4e9))
    at(monkeypatch, MINUTE_NS)
    fingerprint.of(model_dir)
    hashings.clear()
    fingerprint.of(model_dir)
    assert hashings == []


def test_files_that_are_written_while_they_are_hashed(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(1, 100))

    def write_too(path: Path) -> str:
        found = sha256_of(path)
        os.utime(model_dir / "config.json", (1, next(ticks)))
        return found

    monkeypatch.setattr(fingerprint, "sha256_of", write_too)
    with pytest.raises(Unavailable, match="changes while it is read"):
        fingerprint.of(model_dir)
    assert not (model_dir / fingerprint.FILE).exists()


def test_a_fingerprint_of_an_earlier_release_is_made_anew(
    model_dir: Path, hashings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    at(monkeypatch, MINUTE_NS)
    new = fingerprint.of(model_dir)
    short = {name: stamp[:2] for name, stamp in new.stamps.items()}
    (model_dir / fingerprint.FILE).write_text(
        new.model_copy(update={"stamps": short, "fingerprint": "sha256:old"}).model_dump_json()
    )
    assert fingerprint.of(model_dir).fingerprint == new.fingerprint


def test_a_cache_that_others_could_have_written_is_not_believed(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at(monkeypatch, MINUTE_NS)
    monkeypatch.setattr(
        fingerprint, "FILE", "no-such-folder/file"
    )  # as on a read-only volume: nothing can be written beside the weights
    before = os.umask(0)
    try:
        right = fingerprint.of(model_dir)
    finally:
        os.umask(before)
    cache = fingerprint._elsewhere(model_dir)
    assert (cache.stat().st_mode & 0o777, cache.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    cache.write_text(right.model_copy(update={"fingerprint": "sha256:planted"}).model_dump_json())
    assert fingerprint.of(model_dir).fingerprint == "sha256:planted"
    cache.parent.chmod(0o777)
    assert fingerprint.of(model_dir).fingerprint == right.fingerprint


@pytest.mark.parametrize("in_place", [True, False])
def test_a_secret_with_the_same_size_and_time_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_place: bool
) -> None:
    at(monkeypatch, MINUTE_NS)
    file = tmp_path / "token"
    file.write_text("first")
    watched = WatchedFile(file)
    assert watched.changed()
    watched.read()
    assert not watched.changed()
    flip(file, in_place=in_place)
    assert watched.changed()


def test_a_secret_that_is_written_twice_within_a_tick_of_a_coarse_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "token"
    file.write_text("first")
    watched = WatchedFile(file)
    at(monkeypatch, 0)
    stamp = watched._stamp()
    monkeypatch.setattr(WatchedFile, "_stamp", lambda self: stamp)  # the file system's clock stands still
    assert watched.read() == b"first"
    assert not watched.changed()
    file.write_text("other")
    assert watched.changed()
    assert watched.read() == b"other"
    at(monkeypatch, MINUTE_NS)
    assert not watched.changed()
    file.write_text("third")
    assert not watched.changed(), "a minute later the clock has moved on: no file can still have this time"
