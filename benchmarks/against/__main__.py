"""Training and serving of this working tree compared with another commit, in one run.

    python -m benchmarks.against COMMIT --model DIR [--dtype float32] [--starts 3] [--rounds 4]

Each tree has a process, and this tree has a second one, whose ratio to the first shows the noise. They compute in
turns. A ratio is the median of the rounds' ratios, given with its quartiles. All processes start anew several times,
because one process may be slower than the next for as long as it lives. Writes benchmarks/results/against.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from benchmarks.against import contestant as script
from benchmarks.machine import RESULTS, machine
from benchmarks.train.workload import CASES

ROOT = Path(__file__).parents[2]
WARM_UP = 2
"""Rounds after a start whose figures don't count."""
ALLOCATOR = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1), "MALLOC_TOP_PAD_": str(64 << 20)}
"""As `tune_allocator` sets it."""
WORK = {
    "train": tuple(case.name for case in CASES[:3]),
    "serve": tuple(f"streams: {count}" for count in script.STREAMS),
}


class Contestant:
    """One tree's training or serving, in its own process."""

    def __init__(self, way: str, tree: Path, model: str, dtype: str) -> None:
        environment = {**os.environ, **ALLOCATOR, "PYTHONPATH": f"{tree}{os.pathsep}{tree / 'protos'}"}
        command = [sys.executable, script.__file__, way, model, dtype]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=tree, env=environment, text=True
        )

    def rate(self, case: int, seed: int) -> float:
        """Examples or tokens per second of one measurement. Raises RuntimeError if the process ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(case, seed, file=self._process.stdin, flush=True)
        for line in self._process.stdout:
            if line.startswith("RATE "):
                return float(line.split()[1])
        raise RuntimeError("the process of a contestant ended; the reason is above")

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.against", description=__doc__)
    parser.add_argument("commit")
    parser.add_argument("--model", required=True, help="a model directory")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"], help="of training")
    parser.add_argument("--starts", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--output", type=Path, default=RESULTS / "against.json")
    arguments = parser.parse_args()
    with checked_out(arguments.commit) as other:
        trees = {"this": ROOT, "again": ROOT, "other": other}
        rates = {name: found for way in WORK for name, found in measure(way, trees, arguments).items()}
    results = {
        "machine": machine(),
        "commits": {
            "this": git("describe", "--always", "--dirty"),
            "other": git("rev-parse", "--short", arguments.commit),
        },
        "dtype": arguments.dtype,
        "starts": arguments.starts,
        "rounds": arguments.rounds,
        "cases": {case: summary(found) for case, found in rates.items()},
    }
    arguments.output.write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results, indent=2))


def measure(way: str, trees: dict[str, Path], arguments: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    """Rates by case and process."""
    rates: dict[str, dict[str, list[float]]] = {}
    for _ in range(arguments.starts):
        with ExitStack() as stack:
            contestants = []
            for name, tree in trees.items():
                contestants.append((name, Contestant(way, tree, arguments.model, arguments.dtype)))
                stack.callback(contestants[-1][1].close)
            for round in range(WARM_UP + arguments.rounds):
                contestants.append(contestants.pop(0))
                for number, case in enumerate(WORK[way]):
                    for name, contestant in contestants:
                        rate = contestant.rate(number, round)
                        if round >= WARM_UP:
                            rates.setdefault(f"{way}, {case}", {}).setdefault(name, []).append(rate)
    return rates


def summary(rates: dict[str, list[float]]) -> dict[str, Any]:
    """Medians of the rates, and the ratios of this tree to the other one and to itself."""
    return {
        "per_second": {name: round(statistics.median(found), 2) for name, found in rates.items()},
        "ratio": spread(rates["this"], rates["other"]),
        "noise": spread(rates["again"], rates["this"]),
    }


def spread(ours: list[float], theirs: list[float]) -> list[float]:
    """First quartile, median and third quartile of the ratios of a round."""
    ratios = [one / other for one, other in zip(ours, theirs, strict=True)]
    return [round(found, 3) for found in statistics.quantiles(ratios)]


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


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    main()
