"""Datasets at rest: JSON lines in a directory, each file under the digest of its bytes. Whatever is there was checked before.

    datasets/sha256-<hex>        the name that callers use
    <directory>/sha256-<hex>.jsonl

A dataset arrives by upload, inside a request, or from a URI under an allowed root; in each case it is a copy, so that nobody can
change what a job trains on after the job was accepted. The same bytes are stored once.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from shared.errors import DamagedBlob, InvalidInput, NotFound, Unavailable
from shared.security import audit
from trainer_service.chunks import MAX_CHUNK_BYTES, UploadSlots, timely
from trainer_service.jobs.dataset_fields import DATASET, in_dataset, labels_under, renamed
from trainer_service.jobs.dataset_roots import DatasetRoots
from trainer_service.jobs.dataset_upload import TEMPORARY_PREFIX, IncomingFile, UploadLimits
from trainer_service.pools import TrainerPools
from trainer_service.training.dataset import DatasetLimits, ParsedDataset, parse_examples
from trainer_service.training.spec import Example, TaskKind

log = logging.getLogger(__name__)

MAX_CONCURRENT_UPLOADS = 16
TIDYING = "dataset-tidying"
"""Who removes datasets that nobody needs, to the audit."""

_ABANDONED_SECONDS = 3600.0
_NAME = re.compile(r"datasets/sha256-([0-9a-f]{64})")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True)
class StoredDataset:
    """What is known of a dataset once it is stored."""

    name: str
    num_examples: int
    task: TaskKind
    labels: tuple[str, ...]


class DatasetStore:
    """Synchronous methods may block on the disk: call them in `pool`, and `add_uri` in `roots_pool`, since a root may be elsewhere.

    Several processes may share the directory.
    """

    def __init__(self, directory: Path, limits: UploadLimits, roots: DatasetRoots, pools: TrainerPools | None = None) -> None:
        self._directory, self._limits, self._roots = directory, limits, roots
        pools = pools or TrainerPools()
        self.pool, self.roots_pool = pools.datasets, pools.dataset_roots
        self._slots = UploadSlots(MAX_CONCURRENT_UPLOADS)
        directory.mkdir(parents=True, exist_ok=True)
        self._remove_abandoned()

    async def receive(
        self, chunks: AsyncIterator[bytes], *, size_bytes: int = 0, digest: str = "", labels: Sequence[str] = ()
    ) -> StoredDataset:
        """Store what a client sends, if all of it is right. `size_bytes` and `digest` are what it announced (0 and "": nothing)."""
        self._check_announcement(size_bytes, digest)
        with self._slots.taken(), renamed(labels_under("header")), _disk(), IncomingFile(self._directory, self._limits) as incoming:
            async for chunk in timely(chunks):
                await self.pool.call(incoming.write, chunk)
            _check_arrival(incoming, size_bytes, digest)
            return await self.pool.call(self._keep, incoming, tuple(labels))

    def add_examples(self, examples: Iterable[Example], labels: Sequence[str] = ()) -> StoredDataset:
        """Store examples that came inside a request. `labels`: those that are allowed; none given: those that occur."""
        with _disk(), IncomingFile(self._directory, self._limits) as incoming:
            for example in examples:
                incoming.write(_encode(example))
            return self._keep(incoming, labels)

    def add_uri(self, uri: str, field: str, labels: Sequence[str] = ()) -> StoredDataset:
        """Store a copy of a file under one of the allowed roots. Raises InvalidInput naming `field`."""
        source = self._roots.open(uri, field)
        with _disk(), source, IncomingFile(self._directory, self._limits) as incoming:
            while chunk := source.read(MAX_CHUNK_BYTES):
                incoming.write(chunk)
            return self._keep(incoming, labels)

    def read(self, name: str) -> tuple[Example, ...]:
        """The examples, not checked again. Raises NotFound, or DamagedBlob if the bytes no longer match the name."""
        with self._opened(name) as lines:
            return tuple(_decode(line, number) for number, line in enumerate(lines, start=1) if line.strip())

    def parse(self, name: str, labels: Sequence[str] = ()) -> ParsedDataset:
        """The examples with the task and labels that they show, checked against `labels` if there are any. Raises like `read`.

        Counts as a use: it is asked for when a job is made, and `remove_unused` leaves alone what was used lately.
        """
        with self._opened(name) as lines:
            return self._parse(lines, labels)

    def remove_unused(self, uses: Callable[[str], bool], unused_seconds: float) -> tuple[str, ...]:
        """Remove datasets that were neither stored nor used for that long and that no job needs; returns their names.

        `uses(name)` looks into the job store. A dataset is put aside first and looked at again, so one that a job is being made with
        right now is either put back or was never found by that job.
        """
        removed: list[str] = []
        for path in sorted(self._directory.glob("sha256-*.jsonl")):
            name = f"datasets/{path.stem}"
            with suppress(FileNotFoundError):  # another replica tidies too
                if not _is_unused(path, unused_seconds) or uses(name):
                    continue
                aside = path.with_name(f"{TEMPORARY_PREFIX}{path.stem}")
                path.replace(aside)
                if _is_unused(aside, unused_seconds) and not uses(name):
                    aside.unlink()
                    removed.append(name)
                    audit.record("tidying", "OK", {"caller": TIDYING, "dataset": name})
                else:
                    aside.replace(path)
        return tuple(removed)

    @contextmanager
    def _opened(self, name: str) -> Iterator[Iterable[bytes]]:
        """The lines, known to be what the name says."""
        match = _NAME.fullmatch(name)
        if not match:
            raise NotFound("dataset", name[:120], "names look like datasets/sha256-<64 hexadecimal digits>")
        with _disk():
            try:
                file = self._path(match[1]).open("rb")
                with suppress(OSError):  # not ours, or on a volume that can't be written: then nothing is removed there either
                    os.utime(file.fileno())
            except FileNotFoundError:
                raise NotFound("dataset", name, "upload it first") from None
            with file:
                if hashlib.file_digest(file, "sha256").hexdigest() != match[1]:
                    raise DamagedBlob(f"{name} was changed on disk")
                file.seek(0)
                yield file

    def _keep(self, incoming: IncomingFile, labels: Sequence[str]) -> StoredDataset:
        """Parse what has arrived and make it a dataset. Raises InvalidInput naming lines."""
        incoming.flush()
        with incoming.path.open("rb") as lines:
            parsed = self._parse(lines, labels)
        hexadecimal = incoming.digest.removeprefix("sha256:")
        incoming.keep_as(self._path(hexadecimal))
        stored = StoredDataset(f"datasets/sha256-{hexadecimal}", len(parsed.examples), parsed.task, parsed.labels)
        log.info("dataset stored", extra={"fields": {"dataset": stored.name, "examples": stored.num_examples, "bytes": incoming.num_bytes}})
        return stored

    def _parse(self, lines: Iterable[bytes], labels: Sequence[str]) -> ParsedDataset:
        limits = DatasetLimits(max_line_bytes=self._limits.max_line_bytes + 1, max_examples=self._limits.max_examples)  # and its newline
        with renamed(in_dataset(DATASET)):
            return parse_examples(lines, labels, limits)

    def _check_announcement(self, size_bytes: int, digest: str) -> None:
        if not 0 <= size_bytes <= self._limits.max_dataset_bytes:
            raise InvalidInput.of("header.size_bytes", f"{size_bytes} is not in 0 to {self._limits.max_dataset_bytes}")
        if digest and not _DIGEST.fullmatch(digest):
            raise InvalidInput.of("header.digest", "must be sha256: and 64 lower-case hexadecimal digits")

    def _path(self, hexadecimal: str) -> Path:
        return self._directory / f"sha256-{hexadecimal}.jsonl"

    def _remove_abandoned(self) -> None:
        """What a killed process left; recent ones may be another replica's."""
        for path in self._directory.glob(f"{TEMPORARY_PREFIX}*"):
            with suppress(FileNotFoundError):  # another replica cleans too
                if path.stat().st_mtime < time.time() - _ABANDONED_SECONDS:
                    path.unlink()


def _is_unused(path: Path, seconds: float) -> bool:
    return path.stat().st_mtime < time.time() - seconds


def _check_arrival(incoming: IncomingFile, size_bytes: int, digest: str) -> None:
    if size_bytes and size_bytes != incoming.num_bytes:
        raise InvalidInput.of("header.size_bytes", f"announced {size_bytes} bytes, {incoming.num_bytes} arrived")
    if digest and digest != incoming.digest:
        raise InvalidInput.of("header.digest", f"announced {digest}, what arrived has {incoming.digest}")


def _encode(example: Example) -> bytes:
    """One JSON line, the same for the same example."""
    if example.messages:
        line: dict[str, object] = {"messages": [message.model_dump() for message in example.messages]}
    elif example.label is not None:
        line = {"input": example.input, "label": example.label}
    else:
        line = {"input": example.input, "output": example.output}
    return json.dumps(line, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def _decode(line: bytes, number: int) -> Example:
    """A line that was checked when it was stored."""
    return Example(line=number, **json.loads(line.decode("utf-8-sig")))


@contextmanager
def _disk() -> Iterator[None]:
    """A full or broken disk is the operator's to mend; a caller may try again."""
    try:
        yield
    except OSError as error:
        log.exception("the dataset store can't be used")
        raise Unavailable("the trainer can't read or write datasets now; try again later") from error
