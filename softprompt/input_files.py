"""Input files of a caller: regular files, and pipes of a shell (`<(...)`, /dev/stdin)."""

from __future__ import annotations

import stat
from contextlib import suppress
from itertools import islice
from pathlib import Path

from shared.errors import InvalidInput, NotFound
from shared.process.user_cache import expanded

MAX_PIPE_BYTES = 512 << 20
STANDARD_INPUT = Path("/dev/stdin")
_READ_BYTES = 1 << 20


def input_file(path: str | Path, field: str) -> Path | bytes:
    """The path of a regular file, or the bytes of a pipe or device, readable once. Raises NotFound, or InvalidInput."""
    if not str(path):
        raise InvalidInput.of(field, "the file name is empty")
    found = expanded(path)
    try:
        mode = found.stat().st_mode
        if stat.S_ISREG(mode):
            return found
        if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
            return _read_pipe(found, field)
    except (FileNotFoundError, NotADirectoryError):
        if found == STANDARD_INPUT:  # Windows has no such file
            return _read_pipe(found, field)
        if found.is_symlink():
            reason = f"{str(path)!r} is a link to {str(found.readlink())!r}, which does not exist"
            raise InvalidInput.of(field, reason) from None
        hint = "for a file of this name write ./-; for standard input write /dev/stdin" if str(path) == "-" else ""
        hint = "a URL is not read: download the file and name it" if "://" in str(path) else hint
        raise NotFound(field if field == "file" else f"{field} file", str(path), hint) from None
    except (OSError, ValueError) as error:
        reason = f"can't read {_shown(str(path))}: {getattr(error, 'strerror', None) or error}"
        raise InvalidInput.of(field, reason) from error
    kind = "a directory" if stat.S_ISDIR(mode) else "neither a file nor a pipe"
    names = _files_of(found)
    advice = f"name one of its files, such as {', '.join(names)}" if names else "a file is expected"
    raise InvalidInput.of(field, f"{str(path)!r} is {kind}; {advice}")


def shown_name(path: Path) -> str:
    """The file's name as errors show it."""
    if path == STANDARD_INPUT:
        return "standard input"
    return repr(str(path)) if path.is_relative_to("/dev") else repr(path.name)


def _shown(path: str) -> str:
    """The path; cut if it is so long that it must be something else, such as the text of a dataset."""
    return repr(path) if len(path) <= 500 else f"{path[:80]!r}... ({len(path)} characters)"


def _files_of(directory: Path) -> list[str]:
    """Names of some files of a directory; empty if it is not a directory or can't be read."""
    with suppress(OSError):
        return sorted(item.name for item in islice(directory.iterdir(), 100) if item.is_file())[:3]
    return []


def _read_pipe(path: Path, field: str) -> bytes:
    data = bytearray()
    with open(0, "rb", closefd=False) if path == STANDARD_INPUT else path.open("rb") as pipe:
        if pipe.isatty():
            advice = "give a file, or send one (COMMAND | softprompt ... -)"
            raise InvalidInput.of(field, f"{shown_name(path)} is the terminal; {advice}")
        while piece := pipe.read(_READ_BYTES):
            data += piece
            if len(data) > MAX_PIPE_BYTES:
                raise InvalidInput.of(field, f"{shown_name(path)} has more than {MAX_PIPE_BYTES >> 20} MiB; use a file")
    return bytes(data)
