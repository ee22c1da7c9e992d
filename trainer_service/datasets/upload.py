"""Receives bytes into a temporary file, which becomes a dataset only if it is valid.

Limits are checked while bytes arrive, so a hostile sender is rejected at the first excess byte, before the disk is
full. `trainer_service.datasets.store` parses the examples.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path
from typing import Self

from pydantic import Field, ValidationInfo, field_validator

from shared.directories import sync_directory
from shared.errors import InvalidInput
from shared.settings_part import SettingsPart
from shared.values.datasets import MAX_LINE_BYTES

TEMPORARY_PREFIX = ".incoming-"


class UploadLimits(SettingsPart):
    """The limits of one dataset. `trainer_service.config` inherits them."""

    max_examples: int = Field(default=100_000, ge=1)
    """Most examples of a dataset."""
    max_dataset_bytes: int = Field(default=256 << 20, ge=1 << 10)
    """Most bytes of a dataset."""
    max_line_bytes: int = Field(default=MAX_LINE_BYTES, ge=1 << 8)
    """Most bytes of one line of a dataset."""

    @field_validator("max_line_bytes")
    @classmethod
    def _lines_fit_datasets(cls, value: int, info: ValidationInfo) -> int:
        if value > info.data.get("max_dataset_bytes", value):
            raise ValueError(f"a line can't be longer than a dataset: at most {info.data['max_dataset_bytes']}")
        return value


class LineGuard:
    """Rejects a byte stream at the first line that is too long, or exceeds the number of lines."""

    def __init__(self, limits: UploadLimits) -> None:
        self._limits = limits
        self._line = 1
        self._line_bytes = 0

    def feed(self, chunk: bytes) -> None:
        """Raises InvalidInput naming the line."""
        for start in range(0, len(chunk), self._limits.max_line_bytes):
            self._feed_piece(chunk[start : start + self._limits.max_line_bytes])

    def _feed_piece(self, piece: bytes) -> None:
        """Check a piece of at most `max_line_bytes`. Only the line that it continues can be too long."""
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
    """A temporary file beside the datasets. The `with` block removes it at its end unless `keep_as` was called."""

    def __init__(self, directory: Path, limits: UploadLimits) -> None:
        self._limits = limits
        self._lines = LineGuard(limits)
        self._hash = hashlib.sha256()
        self._file = tempfile.NamedTemporaryFile(dir=directory, prefix=TEMPORARY_PREFIX, delete=False)  # noqa: SIM115 (closed in __exit__)
        self.path = Path(self._file.name)
        self.num_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self.path.unlink(missing_ok=True)

    @property
    def digest(self) -> str:
        """The digest of the bytes so far."""
        return "sha256:" + self._hash.hexdigest()

    def write(self, chunk: bytes) -> None:
        """Append a chunk. Raises InvalidInput as soon as the dataset or one of its lines is too large."""
        self.num_bytes += len(chunk)
        if self.num_bytes > self._limits.max_dataset_bytes:
            raise InvalidInput.of("dataset", f"is larger than {self._limits.max_dataset_bytes} bytes")
        self._lines.feed(chunk)
        self._hash.update(chunk)
        self._file.write(chunk)

    def flush(self) -> None:
        """Make the bytes written so far readable through `path`."""
        self._file.flush()

    def sync(self) -> None:
        """Write the bytes to the disk. Call it before `keep_as`, which is then fast."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def keep_as(self, target: Path) -> None:
        """Rename the file to `target`, atomically and durably: a crash leaves the whole file or none."""
        self.path.replace(target)
        sync_directory(target.parent)
