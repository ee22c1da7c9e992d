"""Golden records for soft prompts that were trained elsewhere, so that replicas can prove them like any other version.

They say what *this* trainer's copy of the base model does with the matrix; whether its author saw the same, nobody here
can know.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from shared.process.call_pool import CallPool
from shared.prompt.manifest import GoldenRecord
from trainer_service.proof_process import RECORDS

log = logging.getLogger(__name__)

_MAX_ERROR_CHARS = 300


@dataclass(frozen=True)
class Prover:
    """`max_model_bytes`: larger base models are not loaded for this (0: none is)."""

    max_model_bytes: int
    timeout_seconds: float = 120.0
    _one_at_a_time: asyncio.Lock = field(default_factory=asyncio.Lock)
    _pool: CallPool = field(default_factory=lambda: CallPool("base_models", max_threads=2))

    async def golden_records(self, model_dir: Path, blob: bytes) -> tuple[GoldenRecord, ...]:
        """Takes some seconds. Empty, with the reason in the log, if there can be none: the import goes on without."""
        size = await self._pool.call(lambda: sum(file.stat().st_size for file in model_dir.glob("*.safetensors")))
        if size > self.max_model_bytes:
            return _none(
                f"the base model's {size} bytes are more than the {self.max_model_bytes} that may be loaded for it"
            )
        async with self._one_at_a_time:
            return await self._ask(model_dir, blob)

    async def _ask(self, model_dir: Path, blob: bytes) -> tuple[GoldenRecord, ...]:
        command = (sys.executable, "-m", f"{__package__}.proof_process", str(model_dir))
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, stderr=pipe)
        try:
            async with asyncio.timeout(self.timeout_seconds):
                answer, complaint = await process.communicate(blob)
        except TimeoutError:
            return _none(f"it took longer than {self.timeout_seconds:g} s")
        finally:
            if process.returncode is None:  # too slow, or the import was withdrawn
                process.kill()
                await process.wait()
        if process.returncode:
            return _none(
                f"exit code {process.returncode}: {complaint.decode(errors='replace').strip()[-_MAX_ERROR_CHARS:]}"
            )
        try:
            return RECORDS.validate_json(answer)
        except ValidationError as error:
            return _none(f"its answer can't be read: {error.error_count()} problems")


def _none(reason: str) -> tuple[GoldenRecord, ...]:
    log.warning("an import has no golden record", extra={"fields": {"why": reason}})
    return ()
