"""Datasets, asynchronously."""

from __future__ import annotations

import asyncio
import hashlib
import io
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from prompttuning.v1 import tuning_pb2

from shared.errors import InvalidInput, NotFound, PermissionDenied, Unimplemented
from shared.location import Location
from shared.values.datasets import StoredDataset, UploadedDataset
from shared.violations import moved
from shared.wire.mirror import fill, read
from softprompt.client.connection import Connection
from softprompt.data.prepare import checked_labels, prepare
from softprompt.types.data import DATASET, Dataset, PreparedData

SLOWEST_BYTES_PER_SECOND = 64 << 10
"""The default deadline of an upload allows for a connection that is this slow."""
COPY_SECONDS = 600.0
"""Default deadline of a download, and of a creation for which the trainer copies data from a URI."""
OnUpload = Callable[[int, int], object]
"""Called with (sent bytes, all bytes)."""


class DatasetMethods:
    """The part of AsyncClient for datasets."""

    _connection: Connection

    async def upload_dataset(
        self,
        dataset: Dataset,
        *,
        labels: Sequence[str] = (),
        file_name: str = "",
        timeout_seconds: float | None = None,
        on_progress: OnUpload | None = None,
    ) -> UploadedDataset:
        """Store examples under the digest of their bytes. `dataset` is a path, a DataFrame, examples, or `Data`, which
        chooses columns. Bytes that the tenant has already are not sent again, except under another `file_name`
        (default: the path's). The default deadline grows with the size. Calls `on_progress(sent bytes, all bytes)`.
        Raises InvalidInput with every kind of error in the data and lines that show it; see docs/data.md.
        """
        labels = checked_labels(labels)
        prepared = await asyncio.to_thread(prepare, dataset, labels)
        return await self._upload(prepared, labels, timeout_seconds, on_progress, file_name)

    async def _upload(
        self,
        prepared: PreparedData,
        labels: Sequence[str],
        timeout_seconds: float | None = None,
        on_progress: OnUpload | None = None,
        file_name: str = "",
        check: Callable[[], Awaitable[None]] | None = None,
    ) -> UploadedDataset:
        """`check` is called before bytes are sent, and not if they are stored already."""
        source = await asyncio.to_thread(UploadSource.of, prepared.content)
        if (stored := await self._stored_already(source, labels, file_name)) is not None:
            return stored
        if check is not None:
            await check()
        if timeout_seconds is None:
            timeout_seconds = self._connection.trainer.timeout_seconds + source.size_bytes / SLOWEST_BYTES_PER_SECOND

        async def parts() -> AsyncIterator[tuning_pb2.UploadDatasetRequest]:
            header = tuning_pb2.DatasetHeader(size_bytes=source.size_bytes, digest=source.digest, labels=labels)
            fill(header, "file_name", file_name=file_name or (prepared.name if prepared.name.isprintable() else ""))
            yield tuning_pb2.UploadDatasetRequest(header=header)
            num_sent = 0
            for chunk in source.chunks():
                yield tuning_pb2.UploadDatasetRequest(chunk=chunk)
                num_sent += len(chunk)
                if on_progress is not None:
                    on_progress(num_sent, source.size_bytes)

        with moved(_of_dataset), prepared.named(DATASET):
            method = self._connection.tuning.UploadDataset
            response = await self._connection.trainer.call(method, parts(), timeout_seconds)
        return read(UploadedDataset, response)

    async def list_datasets(self, *, limit: int | None = None) -> list[StoredDataset]:
        """Datasets of the caller's tenant, sorted by name, at most `limit` of them."""
        return await self._connection.all_pages(StoredDataset, tuning_pb2.ListDatasetsRequest(), "datasets", limit)

    async def get_dataset(self, name: str) -> StoredDataset:
        """One dataset with its labels. Raises NotFound if the caller's tenant does not have it."""
        return await self._connection.ask(StoredDataset, tuning_pb2.GetDatasetRequest(name=name), "dataset")

    async def download_dataset(self, name: str) -> AsyncGenerator[bytes]:
        """The bytes of a dataset, JSON lines, in chunks. Raises NotFound if the caller's tenant does not have it."""
        request = tuning_pb2.DownloadDatasetRequest(name=name)
        call: Any = self._connection.tuning.DownloadDataset(request, timeout=COPY_SECONDS)
        try:
            async with self._connection.trainer.errors():
                async for response in call:
                    yield response.chunk
        finally:
            call.cancel()

    async def delete_dataset(self, name: str) -> None:
        """Delete a dataset of the caller's tenant. Raises PreconditionFailed naming the jobs that still need it."""
        await self._connection.send(tuning_pb2.DeleteDatasetRequest(name=name))

    async def _stored_already(
        self, source: UploadSource, labels: Sequence[str], file_name: str
    ) -> UploadedDataset | None:
        """The dataset of these bytes if the tenant has it, by this name if given, and if its labels are allowed."""
        try:
            found = await self.get_dataset(f"datasets/{source.digest.replace(':', '-')}")
        except (NotFound, PermissionDenied, Unimplemented):
            return None
        if (
            not found.num_examples
            or len(found.labels) != found.num_labels
            or file_name not in ("", found.file_name)
            or (labels and not set(found.labels) <= set(labels))
        ):
            return None
        return UploadedDataset(found.name, found.num_examples, found.task, tuple(labels) or found.labels)


def _of_dataset(place: Location) -> Location:
    """The fields of an upload's header as its caller knows them: the size is that of the data."""
    if place.path == ("header", "size_bytes"):
        return Location((DATASET,))
    return replace(place, path=place.path[1:]) if place.path[:2] == ("header", "labels") else place


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
