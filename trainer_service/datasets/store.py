"""Stores datasets as JSON lines in a directory, each file under the digest of its bytes, after checking them.

    datasets/sha256-<hex>                  the name that callers use
    <directory>/sha256-<hex>.jsonl         the examples
    <directory>-facts/sha256-<hex>.json    facts for creating jobs (`dataset_facts`); recreated if missing

A dataset arrives by upload, inside a request, or from a URI under an allowed root. It is always copied, so that a job's
data can't change after the job was accepted. The same bytes are stored once for all tenants; `ledger` records which
tenant has which dataset, and `tenant_datasets` joins the two.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pydantic import ValidationError

from shared.errors import DamagedBlob, InvalidInput, NotFound, Unavailable
from shared.violations import moved
from trainer_service.datasets.chunks import MAX_CHUNK_BYTES, UploadSlots, timely
from trainer_service.datasets.names import NAME, dataset_name, unknown_dataset
from trainer_service.datasets.roots import DatasetRoots
from trainer_service.datasets.upload import TEMPORARY_PREFIX, IncomingFile, UploadLimits
from trainer_service.pools import TrainerPools
from trainer_service.training.data.dataset import DatasetLimits, stored_examples
from trainer_service.training.data.dataset_facts import FORMAT, DatasetFacts, Description, scan_examples
from trainer_service.training.data.example_lines import example_line, stored_example
from trainer_service.training.data.places import DATASET, in_dataset, in_message
from trainer_service.training.events import DatasetFile
from trainer_service.training.spec import Example, TaskKind

log = logging.getLogger(__name__)

MAX_CONCURRENT_UPLOADS = 32

_ABANDONED_SECONDS = 3600.0
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True)
class StoredDataset:
    """The name and facts of a stored dataset. `labels`: the given label set, else the labels that occur."""

    name: str
    num_examples: int
    task: TaskKind
    labels: tuple[str, ...]
    size_bytes: int


@dataclass(frozen=True)
class Inspected:
    """A dataset that was checked and not stored: what `describe` would return for it, and its name and size."""

    dataset: StoredDataset
    facts: DatasetFacts
    sample: tuple[Example, ...]


Source = str | Iterable[Example]
"""Where a dataset comes from: the URI of a file under an allowed root, or examples inside a request."""

Keep = Callable[[StoredDataset, Callable[[], None]], None]
"""Accepts or rejects a dataset that was received and checked: calls the function to store it, or raises."""


def _keep_always(stored: StoredDataset, place: Callable[[], None]) -> None:
    place()


class DatasetStore:
    """The files of all datasets. Several processes may share the directory.

    Synchronous methods may block on the disk: call them in `pool`, those that open a URI in `roots_pool`, since a root
    may be on another volume. All methods raise Unavailable if the disk can't be used.
    """

    def __init__(
        self, directory: Path, limits: UploadLimits, roots: DatasetRoots, pools: TrainerPools | None = None
    ) -> None:
        self._directory, self._limits, self._roots = directory, limits, roots
        pools = pools or TrainerPools()
        self.pool, self.roots_pool = pools.datasets, pools.dataset_roots
        self._slots = UploadSlots(MAX_CONCURRENT_UPLOADS)
        directory.mkdir(parents=True, exist_ok=True, mode=0o750)  # not readable by other users
        self._remove_abandoned()

    async def receive(
        self,
        chunks: AsyncIterator[bytes],
        *,
        size_bytes: int = 0,
        digest: str = "",
        labels: Sequence[str] = (),
        keep: Keep = _keep_always,
    ) -> StoredDataset:
        """Store an upload if all of it is valid.

        `size_bytes` and `digest` as announced by the client (0 and "": not announced). Raises InvalidInput naming
        lines, Overloaded, and the errors of `timely`.
        """
        self.check_announcement(size_bytes, digest)
        with (
            self._slots.taken(),
            moved(in_message("header", "labels")),
            _disk(),
            IncomingFile(self._directory, self._limits) as incoming,
        ):
            async for chunk in timely(chunks):
                await self.pool.call(incoming.write, chunk)
            _check_arrival(incoming, size_bytes, digest)
            return await self.pool.call(self._keep, incoming, tuple(labels), keep)

    def add(
        self,
        source: Source,
        field: str,
        labels: Sequence[str] = (),
        *,
        roots: DatasetRoots | None = None,
        keep: Keep = _keep_always,
    ) -> StoredDataset:
        """Store a source. `labels`: the allowed labels; empty: the labels that occur. `roots`: those of URIs; None: the
        service's. Raises InvalidInput naming `field`, or the wrong lines. The caller may not be allowed to read the
        file of a URI, so errors say where it is wrong and what was expected, and never quote it.
        """
        with self._received(source, field, roots) as incoming:
            return self._keep(incoming, labels, keep, quote=not isinstance(source, str))

    def inspect(
        self, source: Source, field: str, labels: Sequence[str] = (), *, roots: DatasetRoots | None = None
    ) -> Inspected:
        """Checks what `add` would store, and stores nothing."""
        with self._received(source, field, roots) as incoming:
            return self._inspected(incoming, labels, quote=not isinstance(source, str))

    def read(self, name: str) -> tuple[Example, ...]:
        """The examples, not checked again. Raises NotFound, or DamagedBlob if the bytes no longer match the name."""
        with self._opened(name) as lines:
            return stored_examples(lines)

    def open(self, name: str) -> BinaryIO:
        """The open file, to be closed by the caller. Stays readable if the dataset is removed. Raises like `read`."""
        with self._opened(name) as checked:
            return os.fdopen(os.dup(checked.fileno()), "rb")

    def file(self, name: str) -> DatasetFile:
        """The dataset's file, for workers to read. Raises like `read`."""
        with self._opened(name):
            path = self._path(name.removeprefix("datasets/sha256-")).absolute()
            return DatasetFile(path.stem.removeprefix("sha256-"), str(path), path.stat().st_size)

    def describe(self, name: str, labels: Sequence[str] = ()) -> Description:
        """A dataset's facts and its sampled examples. Raises like `read`, and InvalidInput if `labels` don't fit the
        dataset. Errors don't quote the examples, because the dataset may be a copy of a file that the caller may not
        read.
        """
        with self._opened(name) as file:
            hexadecimal = name.rpartition("-")[2]
            facts = self._known_facts(hexadecimal)
            if facts is None:
                facts = self._scan(file, labels, quote=False)
                self._write_facts(hexadecimal, facts)
            sample = _sample(file, facts)
            if not facts.has_only(labels):
                file.seek(0)
                self._scan(file, labels, quote=False)
        return facts, sample

    def known_labels(self, name: str) -> tuple[str, ...]:
        """Labels of a stored dataset, without reading all of it; empty if they are not known."""
        with _disk():
            facts = self._known_facts(name.rpartition("-")[2])
        return () if facts is None else facts.labels

    def measure(self, name: str) -> StoredDataset | None:
        """Facts of a stored dataset, from reading all of it; None if it is missing or damaged."""
        try:
            examples = self.read(name)
            size_bytes = self._path(name.rpartition("-")[2]).stat().st_size
        except (NotFound, DamagedBlob, FileNotFoundError):
            return None
        labels = tuple(sorted({example.label for example in examples if example.label is not None}))
        task = TaskKind.CHAT if examples[0].messages else TaskKind.CLASSIFICATION if labels else TaskKind.GENERATION
        return StoredDataset(name, len(examples), task, labels, size_bytes)

    def remove(self, name: str) -> bool:
        """Remove the bytes. False if they were missing. The caller checks the ledger first."""
        with _disk():
            hexadecimal = name.rpartition("-")[2]
            self._facts_path(hexadecimal).unlink(missing_ok=True)
            try:
                self._path(hexadecimal).unlink()
            except FileNotFoundError:
                return False
        return True

    def unused(self, seconds: float) -> Iterator[str]:
        """Names of datasets whose bytes were neither stored nor read in the last `seconds`."""
        with _disk():
            for path in self._directory.glob("sha256-*.jsonl"):
                with suppress(FileNotFoundError):  # another replica removes datasets too
                    if path.stat().st_mtime < time.time() - seconds:
                        yield f"datasets/{path.stem}"

    def size_bytes(self) -> int:
        """The size of all stored datasets."""
        with _disk(), os.scandir(self._directory) as entries:
            return sum(_size(entry) for entry in entries)

    @contextmanager
    def _opened(self, name: str) -> Iterator[BinaryIO]:
        """The open file of a dataset, after checking its digest."""
        match = NAME.fullmatch(name)
        if not match:
            raise unknown_dataset(name)
        with _disk():
            try:
                file = self._path(match[1]).open("rb")
                # fails for another user's file or a read-only volume; then nothing is removed there either
                with suppress(OSError):
                    os.utime(file.fileno())
            except FileNotFoundError:
                raise unknown_dataset(name) from None
            with file:
                if hashlib.file_digest(file, "sha256").hexdigest() != match[1]:
                    raise DamagedBlob(f"{name} was changed on disk")
                file.seek(0)
                yield file

    def _keep(self, incoming: IncomingFile, labels: Sequence[str], keep: Keep, *, quote: bool = True) -> StoredDataset:
        """Check the received bytes and store them. Raises InvalidInput naming lines, and the errors of `keep`."""
        inspected = self._inspected(incoming, labels, quote=quote)
        hexadecimal, stored = incoming.digest.removeprefix("sha256:"), inspected.dataset
        incoming.sync()
        self._write_facts(hexadecimal, inspected.facts)
        keep(stored, lambda: incoming.keep_as(self._path(hexadecimal)))
        log.info(
            "dataset stored",
            extra={"fields": {"dataset": stored.name, "examples": stored.num_examples, "bytes": incoming.num_bytes}},
        )
        return stored

    def _inspected(self, incoming: IncomingFile, labels: Sequence[str], *, quote: bool) -> Inspected:
        """Check the received bytes. Raises InvalidInput naming lines."""
        incoming.flush()
        with incoming.path.open("rb") as file:
            facts = self._scan(file, labels, quote=quote)
            sample = _sample(file, facts)
        name, shown_labels = dataset_name(incoming.digest.removeprefix("sha256:")), tuple(labels) or facts.labels
        dataset = StoredDataset(name, facts.num_examples, facts.task, shown_labels, incoming.num_bytes)
        return Inspected(dataset, facts, sample)

    @contextmanager
    def _received(self, source: Source, field: str, roots: DatasetRoots | None) -> Iterator[IncomingFile]:
        with _disk(), IncomingFile(self._directory, self._limits) as incoming:
            for chunk in _chunks_of(source, field, roots or self._roots):
                incoming.write(chunk)
            yield incoming

    def _scan(self, lines: Iterable[bytes], labels: Sequence[str], *, quote: bool) -> DatasetFacts:
        max_line_bytes = self._limits.max_line_bytes + 1  # with the newline
        limits = DatasetLimits(max_line_bytes=max_line_bytes, max_examples=self._limits.max_examples)
        with moved(in_dataset(DATASET)):
            return scan_examples(lines, labels, limits, quote=quote)

    def _known_facts(self, hexadecimal: str) -> DatasetFacts | None:
        try:
            facts = DatasetFacts.model_validate_json(self._facts_path(hexadecimal).read_bytes())
        except (FileNotFoundError, ValidationError):
            return None
        return facts if facts.format == FORMAT else None

    def _write_facts(self, hexadecimal: str, facts: DatasetFacts) -> None:
        """Write the facts file. Errors are ignored; the next job then scans the dataset again."""
        path = self._facts_path(hexadecimal)
        with suppress(OSError):
            path.parent.mkdir(exist_ok=True)
            descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=TEMPORARY_PREFIX)
            with open(descriptor, "w") as file:
                file.write(facts.model_dump_json())
            os.replace(temporary, path)

    def _facts_path(self, hexadecimal: str) -> Path:
        return self._directory.with_name(f"{self._directory.name}-facts") / f"sha256-{hexadecimal}.json"

    def check_announcement(self, size_bytes: int, digest: str) -> None:
        """Raises InvalidInput naming `header.size_bytes` or `header.digest` if an announced value is not valid."""
        if not 0 <= size_bytes <= self._limits.max_dataset_bytes:
            raise InvalidInput.of(
                "header.size_bytes", f"{size_bytes} bytes; at most {self._limits.max_dataset_bytes} are allowed"
            )
        if digest and not _DIGEST.fullmatch(digest):
            raise InvalidInput.of("header.digest", "must be sha256: and 64 lower-case hexadecimal digits")

    def _path(self, hexadecimal: str) -> Path:
        return self._directory / f"sha256-{hexadecimal}.jsonl"

    def _remove_abandoned(self) -> None:
        """Remove temporary files of killed processes, except recent ones, which may be another replica's."""
        for path in self._directory.glob(f"{TEMPORARY_PREFIX}*"):
            with suppress(FileNotFoundError):  # another replica cleans too
                if path.stat().st_mtime < time.time() - _ABANDONED_SECONDS:
                    path.unlink()


def _chunks_of(source: Source, field: str, roots: DatasetRoots) -> Iterator[bytes]:
    if not isinstance(source, str):
        yield from map(example_line, source)
        return
    with roots.open(source, field) as file:
        while chunk := file.read(MAX_CHUNK_BYTES):
            yield chunk


def _sample(file: BinaryIO, facts: DatasetFacts) -> tuple[Example, ...]:
    sample = list[Example]()
    for place in facts.sample:
        file.seek(place.start)
        sample.append(stored_example(file.read(place.end - place.start), place.line))
    return tuple(sample)


def _size(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat(follow_symlinks=False).st_size
    except FileNotFoundError:
        return 0


def _check_arrival(incoming: IncomingFile, size_bytes: int, digest: str) -> None:
    if size_bytes and size_bytes != incoming.num_bytes:
        raise InvalidInput.of("header.size_bytes", f"announced {size_bytes} bytes, {incoming.num_bytes} arrived")
    if digest and digest != incoming.digest:
        raise InvalidInput.of("header.digest", f"announced {digest}, the received bytes have {incoming.digest}")


@contextmanager
def _disk() -> Iterator[None]:
    """Turns disk errors, which the operator must fix, into Unavailable for callers."""
    try:
        yield
    except OSError as error:
        log.exception("the dataset store can't be used")
        reason = error.strerror or type(error).__name__  # without the path, which is the operator's business
        raise Unavailable(f"the trainer can't read or write datasets now ({reason}); try again later") from error
