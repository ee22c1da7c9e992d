"""The command line `softprompt`. It starts fast: only commands that call a service import gRPC, and none imports Ray or
torch.
"""

from __future__ import annotations

from softprompt.cli.main import main

__all__ = ["main"]
