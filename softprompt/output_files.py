"""Output files of a caller. Each appears complete or not at all, and an error leaves the former one."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_WRITING_ERRORS = {errno.EFBIG, errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS}


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A path to write to. What is there when the block ends replaces `path`, or the file that a link there names. A
    pipe or a device is its own path. Raises OSError that names `path`, after which a former file is as it was.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        with _named(path, target):
            yield target
        return
    with _named(path):
        descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    os.close(descriptor)
    try:
        with _named(path, Path(name)):
            yield Path(name)
            os.chmod(name, 0o666 & ~_umask())
            with open(name, "rb") as written:
                os.fsync(written.fileno())
            os.replace(name, target)
    except BaseException:
        with suppress(OSError):
            os.unlink(name)
        raise


@contextmanager
def _named(path: Path, *written: Path) -> Iterator[None]:
    """A block whose errors of writing, which have no name or that of a written file, name `path`."""
    try:
        yield
    except OSError as error:
        is_writing = error.errno in _WRITING_ERRORS if error.filename is None else error.filename in map(str, written)
        if is_writing or not written:
            raise OSError(error.errno, error.strerror or str(error), str(path)) from error
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
