"""The serving benchmark for GPUs. Needs only torch (2.11 or later), transformers and safetensors:

    python -m benchmarks.serve.gpu

Measures decode steps of a Llama of 8B shape with random bfloat16 weights, after soft prompts of 100 virtual tokens, at
batch sizes 1, 16 and 64. Compares them with the lower bound by memory bandwidth: the bytes of weights, keys and values
divided by the measured copy rate (goal: 70 %). To try the script, use `--shape tiny --device cpu`.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from benchmarks.bare import stand_in_for_pydantic


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serve.gpu", description=__doc__)
    parser.add_argument("--shape", choices=("8b", "tiny"), default="8b")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 16, 64])
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/serve_gpu.json"))
    arguments = parser.parse_args()
    stand_in_for_pydantic()
    from benchmarks.serve.gpu_cases import measure

    results = measure(arguments.shape, arguments.device, arguments.batches)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(results, indent=2) + "\n")
    sys.stdout.write(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
