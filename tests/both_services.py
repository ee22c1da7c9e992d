"""A whole trainer and a whole replica over one store, and a client of both. The trainer has no workers, or threads."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from softprompt import AsyncClient
from tests.inference_service.replica import Replica, running_replica
from tests.trainer_service.conftest import PATIENT, NoWorkers, RunningTrainer, running_trainer
from tests.trainer_service.test_training_end_to_end import local_pool
from trainer_service.config import TrainerSettings


@dataclass
class Services:
    client: AsyncClient
    replica: Replica
    trainer: RunningTrainer

    @property
    def endpoints(self) -> tuple[str, str]:
        """Of the trainer and of the replica."""
        return f"127.0.0.1:{self.trainer.port}", f"127.0.0.1:{self.replica.port}"


@asynccontextmanager
async def both(
    model_dir: Path, directory: Path, max_proof_model_bytes: int = 0, *, trains: bool = False, **replica_settings: Any
) -> AsyncIterator[Services]:
    settings = TrainerSettings(
        base_models=(f"tiny={model_dir}",),
        data_dir=directory / "data",
        store_url=str(directory / "store"),
        ready_file=str(directory / "trainer.json"),
        grace_seconds=5,
        dtype="float32",
        max_proof_model_bytes=max_proof_model_bytes,
        **PATIENT,
    )
    async with (
        running_replica(model_dir, directory, **replica_settings) as replica,
        running_trainer(settings, local_pool if trains else _no_workers) as trainer,
        AsyncClient(f"127.0.0.1:{trainer.port}", f"127.0.0.1:{replica.port}") as client,
    ):
        yield Services(client, replica, trainer)


def _no_workers(settings: TrainerSettings) -> NoWorkers:
    return NoWorkers()


async def _serve_until_stdin_closes(model_dir: Path, directory: Path, trains: bool) -> None:
    async with both(model_dir, directory, replica="replica-a", trains=trains) as services:
        sys.stdout.write(json.dumps(services.endpoints) + "\n")
        sys.stdout.flush()
        await asyncio.to_thread(sys.stdin.read)


@contextmanager
def both_in_a_process(model_dir: Path, directory: Path, *options: str) -> Iterator[tuple[str, str]]:
    """The addresses of a trainer and a replica in a separate process, for tests that block. Option: `--train`."""
    command = [sys.executable, "-m", "tests.both_services", str(model_dir), str(directory), *options]
    root = Path(__file__).parents[1]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=root
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        trainer, inference = json.loads(process.stdout.readline())
        yield trainer, inference
        process.stdin.close()
        assert process.wait() == 0


if __name__ == "__main__":  # as a separate process, for tests that block
    asyncio.run(_serve_until_stdin_closes(Path(sys.argv[1]), Path(sys.argv[2]), "--train" in sys.argv))
