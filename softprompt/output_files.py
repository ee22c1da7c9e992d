"""Output files of a caller. Each appears complete or not at all, and an error leaves the former one."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_WRITING_ERRORS = {errno.EFBIG, errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS}
_NO_NEW_FILE = {errno.EACCES, errno.EPERM, errno.EROFS}
"""Errors of a directory that takes no file."""


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A path to write to. What is there when the block ends replaces `path`, or the file that a link there names, and
    has its permissions. Raises OSError that names `path`, after which a former file is as it was. A pipe, a device, and
    a file in a directory that takes no other are their own path, written in place.
    """
    target = Path(os.path.realpath(path))  # of /dev/stdout, no path if that is a pipe
    new = None if path.exists() and not path.is_file() else _file_beside(target, path)
    with _named(path, new or path):
        if new is None:
            yield path
            return
        try:
            yield new
            with new.open("rb") as written:
                os.fsync(written.fileno())
            new.chmod(stat.S_IMODE(target.stat().st_mode) if target.exists() else 0o666 & ~_umask())
            new.replace(target)
        except BaseException:
            with suppress(OSError):
                new.unlink()
            raise


def _file_beside(target: Path, path: Path) -> Path | None:
    """A new file, or None if the directory takes none and `target` is there. Raises OSError that names `path`."""
    try:
        descriptor, name = tempfile.mkstemp(prefix=".new-", dir=target.parent)
    except OSError as error:
        if error.errno in _NO_NEW_FILE and target.exists():
            return None
        raise OSError(error.errno, error.strerror, str(path)) from error
    os.close(descriptor)
    return Path(name)


@contextmanager
def _named(path: Path, written: Path) -> Iterator[None]:
    """A block whose errors of writing, which have no name or that of the written file, name `path`."""
    try:
        yield
    except OSError as error:
        is_of_writing = error.errno in _WRITING_ERRORS if error.filename is None else error.filename == str(written)
        if is_of_writing:
            raise OSError(error.errno, error.strerror or str(error), str(path)) from error
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
