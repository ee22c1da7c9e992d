"""How full the trainer's storage is, measured now and then for the metrics."""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from shared.errors import SoftPromptError
from shared.process.daemon_thread import on_daemon_thread
from trainer_service.database.database import Database
from trainer_service.datasets.store import DatasetStore
from trainer_service.jobs.store.files import JobFiles

log = logging.getLogger(__name__)

MEASURE_SECONDS = 30.0


@dataclass(frozen=True)
class StorageUsage:
    """In bytes."""

    disk_total: int
    """Of the file system that has the data directory."""
    disk_free: int
    """For this process, without what is reserved for root."""
    datasets: int
    checkpoints: int
    """With trained prompts that are not published yet, and best prompts that are kept."""
    database: int
    """With PostgreSQL the checkpoints are in it, too."""


class StorageMeter:
    """`run` until cancelled; `observe` is called on the event loop."""

    def __init__(
        self,
        data_dir: Path,
        datasets: DatasetStore,
        files: JobFiles,
        database: Database,
        observe: Callable[[StorageUsage], None],
    ) -> None:
        self._data_dir, self._datasets, self._files, self._database, self._observe = (
            data_dir,
            datasets,
            files,
            database,
            observe,
        )

    async def run(self) -> None:
        while True:
            try:
                self._observe(await on_daemon_thread(self.measure, "storage usage"))
            except (SoftPromptError, OSError) as error:
                log.warning("disk usage could not be measured: %s", error)
            await asyncio.sleep(MEASURE_SECONDS)

    def measure(self) -> StorageUsage:
        """Blocks. Raises OSError or Unavailable."""
        disk = shutil.disk_usage(self._data_dir)
        return StorageUsage(
            disk.total, disk.free, self._datasets.size_bytes(), self._files.size_bytes(), self._database.size_bytes()
        )
