"""A contestant in its own process. It reads one JSON line per order and answers with one line `RESULT {...}`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.serve.workload import NUM_NEW, Workload

CLOSE_SECONDS = 30.0
SCRIPTS = {"vLLM": "vllm_peer.py", "llama.cpp": "llama_cpp_peer.py", "OpenVINO": "openvino_peer.py"}


class PeerProcess:
    """`close` ends the process. Calls raise RuntimeError with the end of its log if it dies.

    Its processes are suspended between its turns, because vLLM's processes poll when they are idle and would take a
    core from the next contestant.
    """

    def __init__(
        self, name: str, command: Sequence[str], model: Path, workload: Workload, table: torch.Tensor, directory: Path
    ) -> None:
        self._name = name
        file = directory / f"{name}-workload.pt"
        torch.save(
            {"prompts": workload.prompts, "inputs": workload.inputs, "num_new": NUM_NEW, "table": table.clone()}, file
        )
        self._log = (directory / f"{name}.log").open("w+")
        environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
        self._process = subprocess.Popen(
            [*command, str(model), str(file)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=environment,
            start_new_session=True,
        )
        self.about = str(self._answer().get("about", ""))
        self._signal(signal.SIGSTOP)

    @classmethod
    def of_script(
        cls, name: str, python: Path, model: Path, workload: Workload, table: torch.Tensor, directory: Path
    ) -> PeerProcess:
        """Starts a peer of SCRIPTS under another interpreter, which has the peer's package and lacks this project.

        `model`: a model directory for vLLM; for the others, the GGUF file that the model came from.
        """
        script = Path(__file__).with_name(SCRIPTS[name])
        return cls(name, [str(python), str(script)], model, workload, table, directory)

    @classmethod
    def transformers(cls, model: Path, workload: Workload, table: torch.Tensor, directory: Path) -> PeerProcess:
        command = [sys.executable, "-m", "benchmarks.serve.transformers_peer"]
        return cls("transformers", command, model, workload, table, directory)

    def tokens_per_second(
        self,
        num_requests: int,
        inputs: Sequence[Sequence[int]] | None = None,
        sampling: Mapping[str, float] | None = None,
    ) -> float:
        """`inputs` replace those of the workload; `sampling` (temperature, top_p, ...) replaces greedy decoding."""
        return self._ask(
            {
                "what": "throughput",
                "requests": num_requests,
                "inputs": inputs,
                "sampling": {"temperature": 0.0, **(sampling or {})},
            }
        )

    def first_token_seconds(self, *, virtual: bool) -> float:
        return self._ask({"what": "ttft", "virtual": virtual})

    def close(self) -> None:
        """Ends the process and its children; kills them if they don't end in time."""
        assert self._process.stdin is not None
        self._signal(signal.SIGCONT)
        self._process.stdin.close()
        try:
            self._process.wait(CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            self._signal(signal.SIGKILL)
            self._process.wait()
        self._log.close()

    def _ask(self, order: dict[str, Any]) -> float:
        assert self._process.stdin is not None
        self._signal(signal.SIGCONT)
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        value = float(self._answer()["value"])
        self._signal(signal.SIGSTOP)
        return value

    def _signal(self, number: signal.Signals) -> None:
        """Sends a signal to the process and its workers, which form a process group."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, number)

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("RESULT "):
                answer: dict[str, Any] = json.loads(line.removeprefix("RESULT "))
                return answer
        self._log.seek(0)
        raise RuntimeError(f"{self._name}'s process ended: {self._log.read()[-2000:]}")
