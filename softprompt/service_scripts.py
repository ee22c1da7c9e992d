"""The commands `softprompt-trainer` and `softprompt-inference`, whose names hold in a checkout and in the wheel."""

from __future__ import annotations

import sys
from importlib import import_module

from shared.package_names import package_name
from shared.process.standard_streams import ERROR_MARK
from softprompt.extras import advice, missing_packages

EXIT_INVALID = 2


def trainer() -> int:
    """Run the trainer service as `python -m trainer_service` does in a checkout; the exit code."""
    return _run("trainer")


def inference() -> int:
    """Run one replica of the inference service as `python -m inference_service` does in a checkout; the exit code."""
    return _run("inference")


def _run(extra: str) -> int:
    if missing := missing_packages(extra):
        sys.stderr.write(f"{ERROR_MARK}{advice(missing, extra)}\n")
        return EXIT_INVALID
    code: int = import_module(f"{package_name(f'{extra}_service')}.__main__").main()
    return code
