"""The bytes of an upload: a file or bytes, with size and digest, read in chunks."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from shared.errors import InvalidInput

CHUNK_BYTES = 512 << 10


@dataclass(frozen=True)
class UploadSource:
    """Bytes that can be read twice: for the digest, and to send them. `content` is a path or the bytes themselves."""

    content: Path | bytes
    size_bytes: int
    digest: str
    """ "sha256:<hex>"."""

    @classmethod
    def of(cls, content: Path | bytes) -> UploadSource:
        """Reads everything once. Raises InvalidInput for a file that can't be read."""
        digest, size = hashlib.sha256(), 0
        try:
            with _open(content) as file:
                while piece := file.read(CHUNK_BYTES):
                    digest.update(piece)
                    size += len(piece)
        except OSError as error:
            raise InvalidInput.of("dataset", f"can't read {str(content)!r}: {error.strerror or error}") from error
        return cls(content, size, f"sha256:{digest.hexdigest()}")

    def chunks(self) -> Iterator[bytes]:
        """The content in chunks of CHUNK_BYTES."""
        with _open(self.content) as file:
            while piece := file.read(CHUNK_BYTES):
                yield piece


def _open(content: Path | bytes) -> AbstractContextManager[BinaryIO]:
    return content.open("rb") if isinstance(content, Path) else io.BytesIO(content)
