"""Makes golden records for soft prompts that were trained elsewhere, so that replicas can check them like any other
version.

The records show what this trainer's copy of the base model does with the matrix, which may differ from what its author
saw. `python -m trainer_service.proof MODEL_DIR < blob > golden.json` makes those of one prefix, in a separate process
because the service never holds weights: if it runs out of memory or never ends, only the golden records of one import
are missing. It computes in float32, so that only replicas round, and uses plain transformers, so that replicas' engines
are compared with another implementation.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from shared.model import base_model
from shared.model.options import ModelOptions
from shared.process.call_pool import CallPool
from shared.process.threads import set_torch_threads
from shared.prompt.blob import decode_blob
from shared.prompt.manifest import GoldenRecord
from shared.text.template import InputEncoder
from trainer_service.training.evaluation.golden import golden_records

log = logging.getLogger(__name__)

_MAX_ERROR_CHARS = 300
_RECORDS = TypeAdapter(tuple[GoldenRecord, ...])


@dataclass(frozen=True)
class Prover:
    """Makes golden records in a separate process, one import at a time. Base models larger than `max_model_bytes` are
    not loaded (0: none is).
    """

    max_model_bytes: int
    timeout_seconds: float = 120.0
    _one_at_a_time: asyncio.Lock = field(default_factory=asyncio.Lock)
    _pool: CallPool = field(default_factory=lambda: CallPool("base_models", max_threads=2))

    async def golden_records(self, model_dir: Path, blob: bytes) -> tuple[GoldenRecord, ...]:
        """Golden records of a blob, after some seconds. Returns none and logs the reason if they can't be made; the
        import then continues without them.
        """
        size = await self._pool.call(lambda: sum(file.stat().st_size for file in model_dir.glob("*.safetensors")))
        if size > self.max_model_bytes:
            return _none(
                f"the base model's {size} bytes are more than the {self.max_model_bytes} that may be loaded for it"
            )
        async with self._one_at_a_time:
            return await self._run_process(model_dir, blob)

    async def _run_process(self, model_dir: Path, blob: bytes) -> tuple[GoldenRecord, ...]:
        command = (sys.executable, "-m", f"{__package__}.proof", str(model_dir))
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, stderr=pipe)
        try:
            async with asyncio.timeout(self.timeout_seconds):
                answer, complaint = await process.communicate(blob)
        except TimeoutError:
            return _none(f"it took longer than {self.timeout_seconds:g} s")
        finally:
            if process.returncode is None:  # too slow, or the import was cancelled
                process.kill()
                await process.wait()
        if process.returncode:
            return _none(
                f"exit code {process.returncode}: {complaint.decode(errors='replace').strip()[-_MAX_ERROR_CHARS:]}"
            )
        try:
            return _RECORDS.validate_json(answer)
        except ValidationError as error:
            return _none(f"its answer can't be read: {error.error_count()} problems")


def _none(reason: str) -> tuple[GoldenRecord, ...]:
    log.warning("an import has no golden records", extra={"fields": {"why": reason}})
    return ()


def main() -> None:
    """Reads a blob from stdin and writes its golden records to stdout as JSON."""
    (model_dir,) = sys.argv[1:]
    set_torch_threads()
    blob = decode_blob(sys.stdin.buffer.read())
    base = base_model.load(model_dir, ModelOptions(dtype="float32", device="cpu"))
    records = golden_records(base, blob.prefix, InputEncoder(base.tokenizer, blob.manifest.template))
    sys.stdout.buffer.write(_RECORDS.dump_json(records))


if __name__ == "__main__":
    main()
