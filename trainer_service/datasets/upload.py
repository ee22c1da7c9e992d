"""Bytes on their way into the dataset store: a temporary file that becomes a dataset only if everything about it is
right.

Bounds are checked while bytes arrive, so a hostile sender is refused at the first byte too many, not after filling the
disk. Knows nothing of examples: `trainer_service.datasets.store` parses what has arrived.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from shared.errors import InvalidInput

TEMPORARY_PREFIX = ".incoming-"


@dataclass(frozen=True)
class UploadLimits:
    """What one dataset may be at most."""

    max_examples: int = 100_000
    max_dataset_bytes: int = 256 << 20
    max_line_bytes: int = 1 << 20


class LineGuard:
    """Follows the lines of a byte stream and refuses the first one that is too long or too many, before the rest
    arrives.
    """

    def __init__(self, limits: UploadLimits) -> None:
        self._limits = limits
        self._line = 1
        self._line_bytes = 0

    def feed(self, chunk: bytes) -> None:
        """Raises InvalidInput naming the line."""
        for start in range(0, len(chunk), self._limits.max_line_bytes):
            self._feed_piece(chunk[start : start + self._limits.max_line_bytes])

    def _feed_piece(self, piece: bytes) -> None:
        """A piece no longer than a line may be: only the line that it continues can be too long, so none of the others
        is looked at.
        """
        first = piece.find(b"\n")
        self._line_bytes += len(piece) if first < 0 else first
        if self._line_bytes > self._limits.max_line_bytes:
            raise InvalidInput.of(f"dataset line {self._line}", f"is longer than {self._limits.max_line_bytes} bytes")
        if first >= 0:
            self._line += piece.count(b"\n")
            self._line_bytes = len(piece) - piece.rfind(b"\n") - 1
        if self._line > self._limits.max_examples + 1:
            raise InvalidInput.of(
                f"dataset line {self._limits.max_examples + 1}",
                f"is one too many: {self._limits.max_examples} are allowed",
            )


class IncomingFile:
    """A temporary file beside the datasets. Leaving the `with` block without `keep_as` removes it, whatever happened."""

    def __init__(self, directory: Path, limits: UploadLimits) -> None:
        self._limits = limits
        self._lines = LineGuard(limits)
        self._hash = hashlib.sha256()
        self._file = tempfile.NamedTemporaryFile(dir=directory, prefix=TEMPORARY_PREFIX, delete=False)  # noqa: SIM115 (closed in __exit__)
        self.path = Path(self._file.name)
        self.num_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self.path.unlink(missing_ok=True)

    @property
    def digest(self) -> str:
        return "sha256:" + self._hash.hexdigest()

    def write(self, chunk: bytes) -> None:
        """Raises InvalidInput as soon as the dataset or one of its lines is too large."""
        self.num_bytes += len(chunk)
        if self.num_bytes > self._limits.max_dataset_bytes:
            raise InvalidInput.of("dataset", f"is larger than {self._limits.max_dataset_bytes} bytes")
        self._lines.feed(chunk)
        self._hash.update(chunk)
        self._file.write(chunk)

    def flush(self) -> None:
        """Everything written so far can be read through `path`."""
        self._file.flush()

    def sync(self) -> None:
        """The bytes are on the disk: what takes long of `keep_as`."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def keep_as(self, target: Path) -> None:
        """Make it `target`, durably and at once: after a crash there is the whole file or none. `sync` comes first."""
        self.path.replace(target)
        directory = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
