"""The GPU's serving benchmark in one command, on a machine that has torch (2.11 or later), transformers and safetensors only:

    python -m benchmarks.serve.gpu

Decode steps of an 8B-class Llama shape with random bfloat16 weights, behind soft prompts of 100 virtual tokens, at batch 1, 16 and 64,
beside the floor of memory bandwidth: weights and keys and values, over the measured copy rate (goal: 70 %). `--shape tiny --device cpu`
shows that it runs.
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
