"""Starts `vllm_peer.py` under another interpreter and asks it for figures."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import torch

from benchmarks.serve.workload import NUM_NEW, Workload

CLOSE_SECONDS = 30.0


class VLLMContestant:
    """A child process; `close` ends it. Raises RuntimeError with its last words if it dies."""

    def __init__(self, python: Path, model: Path, workload: Workload, table: torch.Tensor, directory: Path) -> None:
        file = directory / "workload.pt"
        torch.save({"prompts": workload.prompts, "inputs": workload.inputs, "num_new": NUM_NEW, "table": table.clone()}, file)
        self._log = (directory / "vllm.log").open("w+")
        environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
        self._process = subprocess.Popen(
            [str(python), str(Path(__file__).with_name("vllm_peer.py")), str(model), str(file)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=environment,
        )
        self._answer()

    def tokens_per_second(self, num_requests: int) -> float:
        return self._ask({"what": "throughput", "requests": num_requests})

    def first_token_seconds(self, *, virtual: bool) -> float:
        return self._ask({"what": "ttft", "virtual": virtual})

    def close(self) -> None:
        """Its own processes end with it if it may come to its end; one that doesn't is killed."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def _ask(self, order: dict[str, Any]) -> float:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return float(self._answer()["value"])

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("RESULT "):
                answer: dict[str, Any] = json.loads(line.removeprefix("RESULT "))
                return answer
        self._log.seek(0)
        raise RuntimeError(f"vLLM's process ended: {self._log.read()[-2000:]}")
