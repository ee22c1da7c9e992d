"""The machine that a result was measured on, as each result file names it."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import torch

_INSTRUCTIONS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "asimd", "bf16")
_THREADS = torch.get_num_threads()  # an engine gives the threads to its own and leaves one to the others


RESULTS = Path("benchmarks/results")


def result_file(name: str) -> Path:
    """Where a benchmark that depends on the instruction set writes: each kind of processor has a folder."""
    instructions = machine()["instructions"]
    kinds = (("amx_bf16", "amx"), ("avx512f", "avx512"), ("avx2", "avx2"), ("asimd", "arm"))
    return RESULTS / next((kind for flag, kind in kinds if flag in instructions), "other") / f"{name}.json"


def machine() -> dict[str, Any]:
    """The processor, those of its instruction sets that matter here, its number of cores, and the versions that ran."""
    path = Path("/proc/cpuinfo")
    fields = [line.partition(":") for line in (path.read_text().splitlines() if path.exists() else [])]
    known = {name.strip(): value.strip() for name, _, value in reversed(fields)}
    flags = known.get("flags", known.get("Features", "")).split()
    return {
        "processor": known.get("model name") or platform.processor() or platform.machine(),
        "instructions": [name for name in _INSTRUCTIONS if name in flags],
        "cores": os.cpu_count(),
        "threads": _THREADS,
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
