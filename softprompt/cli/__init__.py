"""The command line `softprompt`. Only commands that call a service import gRPC, and none imports Ray or torch."""

from __future__ import annotations

import sys

try:
    from softprompt.cli.main import main
except KeyboardInterrupt:  # while the modules load, which can take seconds on a busy machine
    sys.exit(130)

__all__ = ["main"]
