"""A file system that loses power: what was not synced is lost, or cut, or there.

As with a journal (ext4, xfs), changes of names reach the disk in order, and syncing a folder also brings what was
changed before. A file's bytes reach it when the file is synced, or by chance.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from operator import attrgetter
from pathlib import Path

from greenlet import getcurrent  # type: ignore[import-untyped]

from shared.store.disk import Disk, Entry, FileStatus, NewFile, OpenFile
from tests.simulation.loop import pause_inside
from tests.simulation.machine import EPOCH

_STEP_SECONDS = 0.004
_parent: Callable[[Path], Path] = lru_cache(maxsize=4096)(attrgetter("parent"))


@dataclass(eq=False)
class _File:
    made_at: float
    data: bytes = b""
    num_synced: int = 0
    """The first bytes, which outlast a loss of power."""

    def write(self, data: bytes) -> None:
        self.data += data

    def sync(self) -> None:
        _step()
        self.num_synced = len(self.data)

    def status(self) -> FileStatus:
        return FileStatus(True, len(self.data), self.made_at)

    def read(self, most: int) -> bytes:
        return self.data[:most]


_FOLDER = _File(0.0)
_Names = dict[Path, _File]


@dataclass(eq=False)
class SimulatedDisk(Disk):
    """One file system, which processes of one machine share. Each call takes a moment, in which others act."""

    rng: random.Random
    on_name: Callable[[Path, bytes], None]
    """Called with each file that gets a name by `link` or `replace`."""
    _names: _Names = field(default_factory=lambda: {Path("/"): _FOLDER})
    _durable: _Names = field(default_factory=lambda: {Path("/"): _FOLDER})
    """As after a loss of power now, without `_changes`."""
    _changes: list[tuple[Path, _File | None]] = field(default_factory=list)
    """Names that got a file, or lost theirs (None), in order."""

    def lose_power(self) -> set[Path]:
        """What a machine finds that starts again. Returns the names that are gone."""
        before = self._names
        for path, file in self._changes[: self.rng.randint(0, len(self._changes))]:
            self._apply(self._durable, path, file)
        self._changes, self._names = [], dict(self._durable)
        for file in dict.fromkeys(self._names.values()):
            lost = len(file.data) - file.num_synced
            file.data = file.data[: len(file.data) - self.rng.choice((0, lost, self.rng.randint(0, lost)))]
            file.num_synced = len(file.data)
        return before.keys() - self._names.keys()

    @contextmanager
    def create(self, path: Path) -> Iterator[NewFile]:
        _step()
        if path in self._names:
            raise FileExistsError(17, "File exists")
        file = _File(EPOCH + asyncio.get_running_loop().time() if _is_running() else EPOCH)
        self._change(path, file)
        yield file

    @contextmanager
    def open(self, path: Path) -> Iterator[OpenFile]:
        _step()
        yield self._file(path)

    def link(self, source: Path, target: Path) -> None:
        _step()
        if target in self._names:
            raise FileExistsError(17, "File exists")
        self._name(target, self._file(source))

    def replace(self, source: Path, target: Path) -> None:
        _step()
        file = self._file(source)
        self._change(source, None)
        self._name(target, file)

    def unlink(self, path: Path) -> None:
        _step()
        self._file(path)
        self._change(path, None)

    def make_folder(self, path: Path) -> None:
        _step()
        if path not in self._names:
            self._change(path, _FOLDER)

    def remove_folder(self, path: Path) -> None:
        _step()
        if self._file(path) is not _FOLDER or any(path in name.parents for name in self._names):
            raise OSError(39, "Directory not empty")
        self._change(path, None)

    def status(self, path: Path) -> FileStatus:
        file = self._file(path)
        return FileStatus(False, 0, EPOCH) if file is _FOLDER else file.status()

    def entries(self, folder: Path) -> list[Entry]:
        _step()
        if self._file(folder) is not _FOLDER:
            raise NotADirectoryError(20, "Not a directory")
        return [
            Entry(path.name, file is _FOLDER) for path, file in self._names.items() if _parent(path) == folder != path
        ]

    def sync_folder(self, folder: Path) -> None:
        _step()
        num = max((number for number, (path, _) in enumerate(self._changes, 1) if path.parent == folder), default=0)
        for path, file in self._changes[:num]:
            self._apply(self._durable, path, file)
        del self._changes[:num]

    def _file(self, path: Path) -> _File:
        if (file := self._names.get(path)) is None:
            raise FileNotFoundError(2, "No such file or directory")
        return file

    def _name(self, path: Path, file: _File) -> None:
        self._change(path, file)
        self.on_name(path, file.data)

    def _change(self, path: Path, file: _File | None) -> None:
        if self._names.get(path.parent) is not _FOLDER:
            raise FileNotFoundError(2, "No such file or directory")
        self._changes.append((path, file))
        self._apply(self._names, path, file)

    @staticmethod
    def _apply(names: _Names, path: Path, file: _File | None) -> None:
        if file is None:
            names.pop(path, None)
        else:
            names[path] = file


def _is_running() -> bool:
    return asyncio._get_running_loop() is not None


def _step() -> None:
    """Whatever else is due goes on before the next step, if this is code of a simulated thread."""
    if hasattr(getcurrent(), "__sqlalchemy_greenlet_provider__"):
        pause_inside(_STEP_SECONDS)
