"""Files that are written for others: complete or as they were, also on a full disk, behind a link and in a device."""

from __future__ import annotations

import errno
import os
import re
import stat
import threading
from pathlib import Path

import pytest

from softprompt.output_files import replaced
from tests.devices import full_device


def test_a_file_appears_complete_with_the_usual_permissions(tmp_path: Path) -> None:
    path, plain = tmp_path / "a.txt", tmp_path / "b.txt"
    with replaced(path) as written:
        written.write_text("new")
        assert not path.exists()
    plain.write_text("new")
    assert (path.read_text(), path.stat().st_mode) == ("new", plain.stat().st_mode)


def test_after_an_error_the_file_is_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fill() -> None:
        with replaced(path) as written:
            written.write_text("half")
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left") as refused:
        fill()
    assert (refused.value.filename, refused.value.errno) == (str(path), errno.ENOSPC)
    assert {item.name: item.read_text() for item in tmp_path.iterdir()} == {"a.txt": "old"}


def test_an_error_of_another_file_keeps_its_name(tmp_path: Path) -> None:
    def read_another() -> None:
        with replaced(tmp_path / "a.txt"):
            (tmp_path / "other.txt").read_text()

    with pytest.raises(FileNotFoundError) as refused:
        read_another()
    assert refused.value.filename == str(tmp_path / "other.txt")


def test_a_link_stays_and_its_file_is_written(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    link, target = tmp_path / "link.txt", tmp_path / "there" / "a.txt"
    link.symlink_to(target)
    for text in ("first", "second"):
        with replaced(link) as written:
            written.write_text(text)
        assert link.is_symlink()
        assert target.read_text() == text


def test_a_pipe_is_written_into(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    found: list[str] = []
    reader = threading.Thread(target=lambda: found.append(pipe.read_text()))
    reader.start()
    with replaced(pipe) as written:
        written.write_text("text")
    reader.join()
    assert (found, pipe.is_fifo()) == (["text"], True)


def test_a_pipe_without_a_name_is_written_into() -> None:
    """As the shell's `/dev/stdout` and `>(...)`, whose real path is no path."""
    reading, writing = os.pipe()
    with replaced(Path(f"/dev/fd/{writing}")) as written:
        written.write_text("text")
    os.close(writing)
    with open(reading) as pipe:
        assert pipe.read() == "text"


def test_a_file_keeps_its_permissions(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.touch(0o600)
    for mode in (0o600, 0o664):
        path.chmod(mode)
        with replaced(path) as written:
            written.write_text("new")
        assert stat.S_IMODE(path.stat().st_mode) == mode


def test_a_name_may_be_as_long_as_the_disk_allows(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 251 + ".txt")
    with replaced(path) as written:
        written.write_text("text")
    assert path.read_text() == "text"


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EROFS])
def test_a_file_in_a_directory_that_takes_no_file_is_written_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(**_: object) -> None:
        raise OSError(number, os.strerror(number), str(tmp_path / "temporary"))

    monkeypatch.setattr("tempfile.mkstemp", refuse)
    path, absent = tmp_path / "a.txt", tmp_path / "b.txt"
    path.write_text("old and longer")
    with replaced(path) as written:
        written.write_text("new")
    assert path.read_text() == "new"
    with pytest.raises(OSError, match=os.strerror(number)) as refused, replaced(absent):
        pass
    assert refused.value.filename == str(absent)


@pytest.mark.parametrize("error", [TimeoutError("too slow"), ConnectionResetError(errno.ECONNRESET, "reset")])
def test_an_error_that_is_not_of_writing_stays_as_it_is(tmp_path: Path, error: OSError) -> None:
    with pytest.raises(type(error)) as raised, replaced(tmp_path / "a.txt"):
        raise error
    assert raised.value is error


def test_a_full_device_is_named_and_stays(tmp_path: Path) -> None:
    device = full_device(tmp_path)

    def fill() -> None:
        with replaced(device) as written:
            written.write_text("text")

    with pytest.raises(OSError, match=re.escape(str(device))):
        fill()
    assert device.is_char_device()
