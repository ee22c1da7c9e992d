"""Training and serving of this working tree compared with another commit, in one run.

    python -m benchmarks.against COMMIT --model DIR [--dtype float32] [--rounds 9]

Each tree trains in one process and serves in another, and only one of the four computes at a time. In each round every
case is measured in both trees, in alternating order; a ratio is the median of the rounds' ratios, with the quartiles.
Writes benchmarks/results/against.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack, contextmanager
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.against import contestant
from benchmarks.machine import RESULTS, machine
from benchmarks.train.workload import CASES

ROOT = Path(__file__).parents[2]
WARM_UP = 2
"""Rounds whose figures don't count."""
WORK = {
    "train": tuple(case.name for case in CASES[:3]),
    "serve": tuple(f"streams: {count}" for count in contestant.STREAMS),
}


class Contestant:
    """One tree's training or serving, in its own process."""

    def __init__(self, way: str, tree: Path, model: str, dtype: str) -> None:
        environment = {**os.environ, "PYTHONPATH": f"{tree}{os.pathsep}{tree / 'protos'}"}
        command = [sys.executable, contestant.__file__, way, model, dtype]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=tree, env=environment, text=True
        )

    def rate(self, case: int, seed: int) -> float:
        """Examples or tokens per second of one measurement. Raises RuntimeError if the process ended."""
        assert self._process.stdin is not None and self._process.stdout is not None
        print(case, seed, file=self._process.stdin, flush=True)
        for line in self._process.stdout:
            if line.startswith("RATE "):
                return float(line.split()[1])
        raise RuntimeError("the process of a contestant ended; the reason is above")

    def close(self) -> None:
        self._process.communicate()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.against", description=__doc__)
    parser.add_argument("commit")
    parser.add_argument("--model", required=True, help="a model directory")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"], help="of training")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--output", type=Path, default=RESULTS / "against.json")
    arguments = parser.parse_args()
    with checked_out(arguments.commit) as other:
        rates = measure({"this": ROOT, "other": other}, arguments)
    results = {
        "machine": machine(),
        "commits": {"this": commit_of("HEAD"), "other": commit_of(arguments.commit)},
        "dtype": arguments.dtype,
        "rounds": arguments.rounds,
        "cases": {case: summary(found) for case, found in rates.items()},
    }
    arguments.output.write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results, indent=2))


def measure(trees: dict[str, Path], arguments: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    """Rates by case and tree."""
    rates: dict[str, dict[str, list[float]]] = {}
    for way, cases in WORK.items():
        with ExitStack() as stack:
            contestants = {}
            for name, tree in trees.items():
                contestants[name] = Contestant(way, tree, arguments.model, arguments.dtype)
                stack.callback(contestants[name].close)
            for round in range(WARM_UP + arguments.rounds):
                for number, case in enumerate(cases):
                    for name in sorted(contestants, reverse=round % 2 == 1):
                        rate = contestants[name].rate(number, round)
                        if round >= WARM_UP:
                            rates.setdefault(f"{way}, {case}", {}).setdefault(name, []).append(rate)
    return rates


def summary(rates: dict[str, list[float]]) -> dict[str, Any]:
    """Medians of the rates, and of the ratio of this tree to the other with its quartiles."""
    ratios = [this / other for this, other in zip(rates["this"], rates["other"], strict=True)]
    return {
        "per_second": {name: round(statistics.median(found), 2) for name, found in rates.items()},
        "ratio": round(statistics.median(ratios), 3),
        "ratio_quartiles": [round(found, 3) for found in statistics.quantiles(ratios)[::2]],
    }


@contextmanager
def checked_out(commit: str) -> Iterator[Path]:
    """A directory with the commit's files."""
    with tempfile.TemporaryDirectory() as directory:
        tree = Path(directory) / "tree"
        git("worktree", "add", "--detach", str(tree), commit)
        try:
            yield tree
        finally:
            git("worktree", "remove", "--force", str(tree))


def commit_of(name: str) -> str:
    return git("rev-parse", "--short", name)


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    main()
