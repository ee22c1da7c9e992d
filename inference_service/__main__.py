"""`python -m inference_service`: one replica that answers with soft prompts. Settings come from SOFTPROMPT_INFERENCE_*."""

from __future__ import annotations

import sys

from inference_service.config import InferenceSettings
from inference_service.server import serve
from shared.service import run_service


def main() -> int:
    return run_service(InferenceSettings, serve, "Serves a frozen language model with the soft prompts of a prompt store, over gRPC.")


if __name__ == "__main__":
    sys.exit(main())
