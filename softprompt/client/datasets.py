"""Training examples as the bytes of an upload: JSON lines from a file or from memory, in pieces, with their digest."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from shared.errors import InvalidInput
from softprompt.input_files import input_file
from softprompt.types.tuning import Example, Examples

CHUNK_BYTES = 512 << 10


@dataclass(frozen=True)
class UploadSource:
    """Bytes that can be read twice (once for the digest, once to send); `content` is a path or the bytes themselves."""

    content: Path | bytes
    size_bytes: int
    digest: str
    """ "sha256:<hex>"."""

    @classmethod
    def of(cls, dataset: str | Path | Examples) -> UploadSource:
        """NotFound for a file that isn't there, InvalidInput for one that can't be read or an example that is no JSON object."""
        content = input_file(dataset, "dataset") if isinstance(dataset, str | Path) else _json_lines(dataset)
        digest, size = hashlib.sha256(), 0
        try:
            with _open(content) as file:
                while piece := file.read(CHUNK_BYTES):
                    digest.update(piece)
                    size += len(piece)
        except OSError as error:
            raise InvalidInput.of("dataset", f"can't read {str(dataset)!r}: {error.strerror or error}") from error
        return cls(content, size, f"sha256:{digest.hexdigest()}")

    def chunks(self) -> Iterator[bytes]:
        with _open(self.content) as file:
            while piece := file.read(CHUNK_BYTES):
                yield piece


def _open(content: Path | bytes) -> AbstractContextManager[BinaryIO]:
    return content.open("rb") if isinstance(content, Path) else io.BytesIO(content)


def _json_lines(examples: Examples) -> bytes:
    lines = [json.dumps(_example_fields(example, index), ensure_ascii=False) for index, example in enumerate(examples)]
    return "".join(line + "\n" for line in lines).encode()


def _example_fields(example: Example | Mapping[str, Any], index: int) -> dict[str, Any]:
    if isinstance(example, Mapping):
        return dict(example)
    if not isinstance(example, Example):
        raise InvalidInput.of(f"dataset[{index}]", f"an Example or a mapping is expected, not {type(example).__name__}")
    if example.messages:
        return {"messages": [dataclasses.asdict(message) for message in example.messages]}
    target = {name: value for name in ("output", "label") if (value := getattr(example, name)) is not None}
    return {"input": example.input, **target}
