"""The command line `softprompt`. Starts fast: gRPC, Ray and torch are imported only by the commands that need them."""

from __future__ import annotations

from softprompt.cli.main import main

__all__ = ["main"]
