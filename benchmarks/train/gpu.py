"""The GPU's training benchmark in one command, on a machine that has torch, transformers, peft and safetensors only:

    python -m benchmarks.train.gpu

A Llama of 1B shape with random bfloat16 weights, so nothing is downloaded: eight jobs in one pass beside eight PEFT runs (goal: six times
as fast), and one job of batch 256 beside the chip's measured matrix rate (goal: 40 %). `--shape tiny --device cpu` shows that it runs.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from benchmarks.bare import stand_in_for_pydantic


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train.gpu", description=__doc__)
    parser.add_argument("--shape", choices=("1b", "tiny"), default="1b")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/train_gpu.json"))
    arguments = parser.parse_args()
    stand_in_for_pydantic()
    from benchmarks.train.gpu_cases import measure

    results = measure(arguments.shape, arguments.device, arguments.rounds)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(results, indent=2) + "\n")
    sys.stdout.write(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
