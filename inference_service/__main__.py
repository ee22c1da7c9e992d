"""`python -m inference_service` runs one replica. Settings come from SOFTPROMPT_INFERENCE_*."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING

from shared.process.garbage import paused_collector
from shared.process.service import run_service
from shared.process.surroundings import prepare_process
from shared.process.threads import limit_threads

if TYPE_CHECKING:
    from inference_service.config import InferenceSettings


def main() -> int:
    """Run the service and return its exit status."""
    prepare_process()
    limit_threads()
    with paused_collector():
        from inference_service.config import InferenceSettings  # imports torch

    return run_service(
        InferenceSettings, _serve, "Serves a frozen language model with the soft prompts of a prompt store, over gRPC."
    )


async def _serve(settings: InferenceSettings, stop: asyncio.Event) -> None:
    with paused_collector():  # slow to import: not for --help, nor for settings that are refused
        from inference_service.server import serve

    await serve(settings, stop)


if __name__ == "__main__":
    sys.exit(main())
