"""`python -m trainer_service`: starts the trainer. Its settings come from SOFTPROMPT_TRAINER_*."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import TYPE_CHECKING

from shared.process.garbage import paused_collector
from shared.process.service import run_service
from shared.process.surroundings import prepare_process
from shared.process.threads import limit_threads

if TYPE_CHECKING:
    from trainer_service.config import TrainerSettings

_ABOUT = """Trains soft prompts, keeps jobs and publishes versions, over gRPC.

Two commands do something else: `move-database` moves the jobs of a stopped trainer from SQLite to PostgreSQL, and
`drain-node` moves the jobs of a Ray node that is about to go to other nodes."""


def main() -> int:
    """Runs the trainer until it is stopped, or one of its other commands, and returns the exit code."""
    prepare_process()
    if sys.argv[1:2] == ["move-database"]:
        from trainer_service.move_database import main as move_database

        return move_database(sys.argv[2:])
    if sys.argv[1:2] == ["drain-node"]:
        from trainer_service.cluster.node_agent import main as drain_node

        return drain_node(sys.argv[2:])
    limit_threads()
    with paused_collector():
        from trainer_service.config import TrainerSettings  # imports torch

    return run_service(TrainerSettings, _serve, _ABOUT)


async def _serve(settings: TrainerSettings, stop: asyncio.Event) -> None:
    # grpc reads this when it is imported. Ray forks, but its children don't use grpc.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    # Imported here because they are slow to import, and not needed for --help or refused settings.
    with paused_collector():
        from trainer_service.server import serve
        from trainer_service.worker_pool import ray_pool

    await serve(settings, stop, ray_pool)


if __name__ == "__main__":
    sys.exit(main())
