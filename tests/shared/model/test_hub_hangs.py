"""A hub that accepts connections and never answers."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from tests.tcp_proxy import silent_server

PULL = "from softprompt.cli import main; main()"


async def test_pulling_a_hub_model_ends_in_time_and_says_why(tmp_path: Path) -> None:
    async with silent_server() as port:
        environment = os.environ | {
            "HF_ENDPOINT": f"http://127.0.0.1:{port}",
            "HF_HOME": str(tmp_path),
            "HF_HUB_OFFLINE": "0",
        }
        pull = await asyncio.create_subprocess_exec(
            sys.executable, "-c", PULL, "models", "pull", "org/model", env=environment, stderr=asyncio.subprocess.PIPE
        )
        _, complaint = await pull.communicate()
        assert pull.returncode != 0
        assert b"hub does not answer" in b" ".join(complaint.split())
