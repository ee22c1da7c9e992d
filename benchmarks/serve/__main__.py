"""Runs all contestants of a case alternately in every round. Prints medians and ratios, writes JSON.

A ratio is the median over pairs of adjacent measurements, because the machine's speed drifts by more than most
differences. With `--cases`, only these cases are replaced in the output file.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.machine import machine, result_file
from benchmarks.serve.cases import CASES, Case, Goal
from benchmarks.serve.field import Field
from shared.process.allocator import tune_allocator

MANY_PROMPTS = 500
ROUNDS = 3


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serve", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="a model directory, bfloat16 on the CPU")
    parser.add_argument(
        "--vllm-python", type=Path, help="an interpreter with vLLM's CPU build; by default vLLM is left out"
    )
    for option, package in (("--llama-cpp", "llama-cpp-python"), ("--openvino", "openvino-genai")):
        parser.add_argument(
            option,
            nargs=2,
            type=Path,
            metavar=("PYTHON", "GGUF"),
            help=f"an interpreter with {package}, and the model's GGUF file; without it, this peer is left out",
        )
    names = [case.name for case in CASES]
    parser.add_argument(
        "--cases", nargs="*", choices=names, default=names, metavar="CASE", help=f"some of: {', '.join(names)}"
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument(
        "--many-prompts", type=int, default=MANY_PROMPTS, help="number of prompts in the case with many prompts"
    )
    parser.add_argument("--output", type=Path, default=result_file("serve"))
    arguments = parser.parse_args()
    tune_allocator()
    known = json.loads(arguments.output.read_text()) if arguments.output.is_file() else {}
    results = {"cases": known.get("cases", {})}  # those that don't run now stay, with the machine that they ran on
    asyncio.run(measure(arguments, results))
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(results, indent=2) + "\n")
    sys.stdout.write(f"written to {arguments.output}\n")


async def measure(arguments: argparse.Namespace, results: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        field = Field(
            arguments.model,
            arguments.vllm_python,
            arguments.llama_cpp,
            arguments.openvino,
            arguments.many_prompts,
            Path(directory),
        )
        try:
            for case in CASES:
                if case.name in arguments.cases:
                    found = await run(case, field, max(1, arguments.rounds))
                    found["peers"] = {
                        name: about
                        for name, about in field.about_peers().items()
                        if any(name in figure for figure in found["medians"])
                    }
                    if case.name == "many-prompts":
                        found["num_prompts"] = arguments.many_prompts
                    results["cases"][case.name] = found
                    show(case, found)
            results["prefix_load_seconds"] = field.prefix_load_seconds
        finally:
            await field.close()


async def run(case: Case, field: Field, rounds: int) -> dict[str, Any]:
    samples: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        samples.setdefault(name, []).append(value)
        sys.stderr.write(f"{case.name}: {name}: {value:.4g}\n")

    for _ in range(rounds):
        await case.round(field, note)
    medians = {name: statistics.median(values) for name, values in samples.items()}
    goals = {goal.name: judged for goal in case.goals if (judged := judge(goal, samples)) is not None}
    return {
        "machine": machine(),
        "about": case.about,
        "rounds": rounds,
        "goals": goals,
        "medians": medians,
        "samples": samples,
    }


def judge(goal: Goal, samples: dict[str, list[float]]) -> dict[str, float | bool] | None:
    """The ratio, or None if a contestant did not run."""
    if goal.figure not in samples or (goal.beside is not None and goal.beside not in samples):
        return None
    beside = samples[goal.beside] if goal.beside is not None else [1.0] * len(samples[goal.figure])
    value = statistics.median(own / other for own, other in zip(samples[goal.figure], beside, strict=True))
    return {
        "value": value,
        "wanted": goal.value,
        "reached": value <= goal.value if goal.at_most else value >= goal.value,
    }


def show(case: Case, found: dict[str, Any]) -> None:
    lines = [f"{case.name}: {case.about}", *(f"  {name:44} {value:10.4g}" for name, value in found["medians"].items())]
    for name, goal in found["goals"].items():
        lines.append(
            f"  {name:44} {goal['value']:10.3f}  (goal {goal['wanted']}, {'reached' if goal['reached'] else 'missed'})"
        )
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
