"""Where the services are: from the environment, else on this machine."""

from __future__ import annotations

import os

TRAINER_VARIABLE, INFERENCE_VARIABLE = "SOFTPROMPT_TRAINER", "SOFTPROMPT_INFERENCE"
DEFAULT_TRAINER_PORT, DEFAULT_INFERENCE_PORT = 50051, 50052


def trainer_endpoint() -> str:
    """`host:port`, or `dns:///name:port` to go round all its addresses."""
    return os.environ.get(TRAINER_VARIABLE) or f"127.0.0.1:{DEFAULT_TRAINER_PORT}"


def inference_endpoint() -> str:
    return os.environ.get(INFERENCE_VARIABLE) or f"127.0.0.1:{DEFAULT_INFERENCE_PORT}"
