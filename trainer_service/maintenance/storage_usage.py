"""Measures the use of the trainer's storage at intervals for the metrics."""

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
    """Sizes in bytes."""

    disk_total: int
    """Size of the data directory's file system."""
    disk_free: int
    """Free bytes for this process, without the reserve for root."""
    datasets: int
    checkpoints: int
    """Checkpoints, trained prompts that are not published yet, and kept best prompts."""
    database: int
    """Size of the database; on PostgreSQL it includes the checkpoints."""


class StorageMeter:
    """Measures until `run` is cancelled; `observe` is called on the event loop."""

    def __init__(
        self,
        data_dir: Path,
        datasets: DatasetStore,
        files: JobFiles,
        database: Database,
        observe: Callable[[StorageUsage], None],
    ) -> None:
        self._data_dir, self._datasets, self._files = data_dir, datasets, files
        self._database, self._observe = database, observe

    async def run(self) -> None:
        """Measures every `MEASURE_SECONDS`; failures are logged."""
        while True:
            try:
                self._observe(await on_daemon_thread(self.measure, "storage usage"))
            except (SoftPromptError, OSError) as error:
                log.warning("disk usage could not be measured: %s", error)
            await asyncio.sleep(MEASURE_SECONDS)

    def measure(self) -> StorageUsage:
        """Measures once. Blocks. Raises OSError or Unavailable."""
        disk = shutil.disk_usage(self._data_dir)
        return StorageUsage(
            disk.total, disk.free, self._datasets.size_bytes(), self._files.size_bytes(), self._database.size_bytes()
        )
