"""Runs all contestants in turn in every round, so that a ratio compares neighbours in time; prints medians and ratios, writes JSON."""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.serve.contestants import EngineContestant, TransformersContestant
from benchmarks.serve.vllm_process import VLLMContestant
from benchmarks.serve.workload import Workload
from shared.allocator import tune_allocator

MANY_PROMPTS = 500
TTFT_PAIRS = 9


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serve", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="a model directory, bfloat16 on the CPU")
    parser.add_argument("--vllm-python", type=Path, help="an interpreter that has vLLM's CPU build; without it vLLM is left out")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--many-prompts", type=int, default=MANY_PROMPTS, help="prompts loaded in the case of many (0 leaves it out)")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/serve.json"))
    arguments = parser.parse_args()
    tune_allocator()
    results = asyncio.run(measure(arguments))
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(results, indent=2) + "\n")
    show(results, str(arguments.output))


async def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    engine = EngineContestant(arguments.model)
    await engine.start()
    plain = TransformersContestant(arguments.model)
    workload = Workload.make(engine.table, 64)
    load_seconds = await engine.load(workload, "few-")
    figures: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        figures.setdefault(name, []).append(value)
        sys.stderr.write(f"{name}: {value:.4g}\n")

    with tempfile.TemporaryDirectory() as directory:
        vllm = None
        if arguments.vllm_python is not None:
            vllm = VLLMContestant(arguments.vllm_python, arguments.model, workload, engine.table, Path(directory))
        try:
            await engine.tokens_per_second(workload, "few-", 4)
            for _ in range(max(3, arguments.rounds)):
                for count in (1, 16, 32):
                    note(f"engine, {count} requests, tokens/s", await engine.tokens_per_second(workload, "few-", count))
                    if vllm is not None:
                        note(f"vllm, {count} requests, tokens/s", await asyncio.to_thread(vllm.tokens_per_second, count))
                note("transformers, 16 requests, tokens/s", plain.tokens_per_second(workload, 16))
                for pair in range(TTFT_PAIRS):
                    note("engine, TTFT with a soft prompt, s", await engine.first_token_seconds(workload.inputs[pair], "few-0"))
                    note("engine, TTFT without, s", await engine.first_token_seconds(workload.inputs[pair], None))
                    if vllm is not None:
                        note("vllm, TTFT with a soft prompt, s", vllm.first_token_seconds(virtual=True))
                        note("vllm, TTFT without, s", vllm.first_token_seconds(virtual=False))
        finally:
            if vllm is not None:
                vllm.close()
    if arguments.many_prompts:
        many = Workload.make(engine.table, 64, arguments.many_prompts, seed=1)
        await engine.load(many, "many-")
        for _ in range(max(3, arguments.rounds)):
            note("engine, 64 requests over few prompts, tokens/s", await engine.tokens_per_second(workload, "few-", 64))
            note("engine, 64 requests over many prompts, tokens/s", await engine.tokens_per_second(many, "many-", 64))
        await engine.unload(many, "many-")
    await engine.stop()
    medians = {name: statistics.median(values) for name, values in figures.items()}
    return {
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        },
        "rounds": max(3, arguments.rounds),
        "many_prompts": arguments.many_prompts,
        "vllm": "measured" if arguments.vllm_python is not None else "not measured: no interpreter was given (--vllm-python)",
        "prefix_load_seconds": load_seconds,
        "medians": medians,
        "samples": figures,
        "ratios": ratios(medians),
    }


def ratios(medians: dict[str, float]) -> dict[str, float]:
    """Each goal's figure; those of contestants that did not run are left out."""
    wanted = {
        "16 requests: engine over vLLM (goal 1.5)": ("engine, 16 requests, tokens/s", "vllm, 16 requests, tokens/s"),
        "32 requests: engine over vLLM (goal 1.5)": ("engine, 32 requests, tokens/s", "vllm, 32 requests, tokens/s"),
        "1 request: engine over vLLM (goal 1.0)": ("engine, 1 requests, tokens/s", "vllm, 1 requests, tokens/s"),
        "16 requests: engine over transformers' generate (goal 3)": (
            "engine, 16 requests, tokens/s",
            "transformers, 16 requests, tokens/s",
        ),
        "TTFT with a soft prompt over without (goal at most 1.05)": ("engine, TTFT with a soft prompt, s", "engine, TTFT without, s"),
        "vLLM's TTFT with a soft prompt over without": ("vllm, TTFT with a soft prompt, s", "vllm, TTFT without, s"),
        "many prompts over few (goal 0.9)": (
            "engine, 64 requests over many prompts, tokens/s",
            "engine, 64 requests over few prompts, tokens/s",
        ),
    }
    return {name: medians[a] / medians[b] for name, (a, b) in wanted.items() if a in medians and b in medians}


def show(results: dict[str, Any], path: str) -> None:
    lines = [f"{name:60} {value:10.4g}" for name, value in results["medians"].items()]
    lines += ["", f"{'prefix KV of one soft prompt computed in, s':60} {results['prefix_load_seconds']:10.4g}", ""]
    lines += [f"{name:60} {value:10.2f}" for name, value in results["ratios"].items()]
    lines += ["", f"vLLM: {results['vllm']}", f"written to {path}"]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
