"""The training benchmark for GPUs. Needs only torch, transformers, peft and safetensors:

    python -m benchmarks.train.gpu

The model is a Llama of 1B shape with random bfloat16 weights, so nothing is downloaded. Compares eight jobs in one pass
with eight PEFT runs (goal: six times as fast), and one job of batch 256 with the device's measured rate of matrix
products (goal: 40 %). To try the script, use `--shape tiny --device cpu`.
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
