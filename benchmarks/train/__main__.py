"""Runs the same step alternately with all contestants, so that each ratio compares adjacent measurements. Writes JSON.

Peak memory is measured in a separate process for each contestant. Needs torch, transformers, peft and safetensors, but
not Ray. On a GPU, use `--device cuda --dtype bfloat16`, and `--gpu-shape` for the two cases of a Llama of 1B shape with
random weights.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import machine, result_file
from benchmarks.train.contestants import CONTESTANTS, PREFIX_CONTESTANTS
from benchmarks.train.gpu_cases import measure as measure_gpu_shape
from benchmarks.train.workload import CASES, Case, load_model, make_rows
from shared.process.allocator import tune_allocator
from trainer_service.training.precision import pick_training_dtype

WANTED_MEMORY_RATIO = 0.5
WARM_UP = 2
"""Warm-up rounds. The first use of memory is slow, and memory that one contestant frees is new to the other."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train", description=__doc__)
    parser.add_argument("--model", required=True, help="a model directory")
    parser.add_argument(
        "--dtype",
        default="auto",
        choices=["auto", "bfloat16", "float32"],
        help="auto: the dtype that a worker would choose on this machine",
    )
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--rounds", type=int, default=5)
    every = list(range(len(CASES)))
    parser.add_argument("--cases", type=int, nargs="*", default=every, help=f"indices of the cases to run: {every}")
    parser.add_argument("--gpu-shape", action="store_true", help="also run the cases of a model of 1B shape, on a GPU")
    parser.add_argument("--output", type=Path, help="default: train-DTYPE.json in the folder of this kind of processor")
    parser.add_argument("--memory-of", choices=CONTESTANTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.dtype == "auto":
        arguments.dtype = str(pick_training_dtype("auto", torch.device(arguments.device))).removeprefix("torch.")
    arguments.output = arguments.output or result_file(f"train-{arguments.dtype}")
    tune_allocator()
    if arguments.memory_of:
        print(peak_bytes(arguments))
        return
    results: dict[str, Any] = {
        "machine": machine(),
        "dtype": arguments.dtype,
        "device": arguments.device,
        "cases": [],
    }
    for index in arguments.cases:
        results["cases"].append(measure(CASES[index], arguments))
        show(results["cases"][-1])
    peaks = {name: memory_in_own_process(name, arguments) for name in CONTESTANTS}
    results["peak_bytes"] = peaks | {"ratio": peaks["shared"] / peaks["peft"], "wanted": WANTED_MEMORY_RATIO}
    print(
        f"peak memory, first case: {peaks['shared'] / 2**20:.0f} MiB, PEFT {peaks['peft'] / 2**20:.0f} MiB", flush=True
    )
    if arguments.gpu_shape:
        results["gpu_shape"] = measure_gpu_shape("1b", "cuda", max(3, arguments.rounds))
        print(json.dumps(results["gpu_shape"], indent=2), flush=True)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(results, indent=2) + "\n")
    print(f"written to {arguments.output}")


def measure(case: Case, arguments: argparse.Namespace) -> dict[str, Any]:
    """Gives each contestant its own model, so that neither sees the other's wrappers."""
    kinds = PREFIX_CONTESTANTS if case.is_prefix else CONTESTANTS
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    losses: dict[str, list[list[float]]] = {name: [] for name in kinds}
    models = {name: load_model(arguments.model, arguments.dtype, arguments.device) for name in kinds}
    contestants = {name: contestant(models[name], case) for name, contestant in kinds.items()}
    vocab_size = next(iter(models.values())).get_input_embeddings().weight.shape[0]  # type: ignore[operator]
    for step in range(max(3, arguments.rounds) + WARM_UP):
        rows = make_rows(case, vocab_size, seed=step)
        for name, contestant in contestants.items():
            started = time.perf_counter()
            losses[name].append(contestant.step(rows))
            if step >= WARM_UP:
                seconds[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ours, *others = seconds
    ratios = {
        name: statistics.median(theirs / own for theirs, own in zip(seconds[name], seconds[ours], strict=True))
        for name in others
    }
    examples = case.num_jobs * case.batch_size
    return {
        "case": case.name,
        "examples_per_second": {name: examples / median for name, median in medians.items()},
        "seconds": seconds,
        "ratio": ratios[others[0]],
        **({"ratios": ratios} if case.is_prefix else {}),
        "wanted_ratio": case.wanted_ratio,
        "first_losses": {name: values[0] for name, values in losses.items()},
    }


def show(result: dict[str, Any]) -> None:
    speeds = ", ".join(f"{name} {speed:.2f}" for name, speed in result["examples_per_second"].items())
    ratios = result.get("ratios", result["ratio"])
    print(f"{result['case']}: examples/s {speeds}; ratio {ratios} (goal {result['wanted_ratio']})", flush=True)


def peak_bytes(arguments: argparse.Namespace) -> int:
    """Peak memory of this process (on a GPU, of the device) for two steps of the first case."""
    case = CASES[0]
    model = load_model(arguments.model, arguments.dtype, arguments.device)
    contestant = CONTESTANTS[arguments.memory_of](model, case)
    for step in range(2):
        contestant.step(make_rows(case, 1000, seed=step))
    if arguments.device == "cuda":
        return int(torch.cuda.max_memory_allocated())
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage would include the parent's peak, which a child inherits
        return (
            next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM:")) * 1024
        )
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def memory_in_own_process(name: str, arguments: argparse.Namespace) -> int:
    command = [sys.executable, "-m", "benchmarks.train", "--model", arguments.model, "--dtype", arguments.dtype]
    command += ["--device", arguments.device, "--memory-of", name]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


if __name__ == "__main__":
    main()
