"""Compares the compiled kernels with torch's in alternating runs, with random numbers in the shapes of SmolLM2-135M.

    python -m benchmarks.kernels

Writes medians and ratios to kernels.json in the folder of this kind of processor.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from benchmarks.kernels import calls, sampling, serving, training
from benchmarks.machine import machine, result_file
from shared.kernels import library
from shared.process.allocator import tune_allocator


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels", description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--output", type=Path, default=result_file("kernels"))
    arguments = parser.parse_args()
    tune_allocator()
    torch.manual_seed(0)
    if library.load() is None:
        raise SystemExit("no compiled kernels on this machine")
    results: dict[str, Any] = {"machine": machine()}
    with torch.inference_mode():
        results["serving"] = {
            part.__name__: part(arguments.rounds) for part in (serving.products, serving.attention, serving.norm)
        }
        results["calls"] = calls.norm(10 * arguments.rounds)
        results["sampling, milliseconds"] = sampling.measure(arguments.rounds)
    results["training"] = training.measure(arguments.rounds)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
