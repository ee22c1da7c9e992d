"""Benchmarks of the job service.

Measures the job store with 10 to 100,000 jobs, a service with 2,000 queued jobs and 50 watchers, the time to the first
training step, and recovery times.

    python -m benchmarks.jobs                  all parts; PostgreSQL if it is installed, first steps with --model
    python -m benchmarks.jobs --part sqlite    one part: sqlite, postgresql, service, first-step or recovery

Writes each part to benchmarks/results/jobs.json under its own name; parts that did not run keep their figures.
Latencies are medians and 99th percentiles in milliseconds. `recovery` runs the fault tests, which record their times.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.jobs import first_step, recovery, service, store_load
from benchmarks.jobs.databases import postgresql
from benchmarks.machine import machine

RESULTS = Path(__file__).parents[1] / "results" / "jobs.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="base model directory, for the time to the first step")
    parser.add_argument(
        "--part", choices=["sqlite", "postgresql", "service", "first-step", "recovery"], action="append"
    )
    arguments = parser.parse_args()
    parts: dict[str, Callable[[Path], Any]] = {
        "sqlite": lambda directory: asyncio.run(
            store_load.measure(f"sqlite:///{directory / 'jobs.sqlite3'}", directory)
        ),
        "postgresql": with_postgresql,
        "service": lambda directory: asyncio.run(service.measure(directory)),
        "recovery": lambda _: recovery.measure(),
    }
    if arguments.model is not None:
        parts["first-step"] = lambda directory: asyncio.run(first_step.measure(directory, arguments.model))
    wanted = arguments.part or list(parts)
    if missing := [name for name in wanted if name not in parts]:
        parser.error(f"{missing[0]} needs --model")
    for name in wanted:
        with tempfile.TemporaryDirectory(prefix="softprompt-bench-") as directory:
            keep(name, parts[name](Path(directory)))


def with_postgresql(directory: Path) -> Any:
    with postgresql() as url:
        return None if url is None else asyncio.run(store_load.measure(url, directory))


def keep(name: str, figures: Any) -> None:
    """Writes one part's figures and keeps those of the others; None writes nothing."""
    sys.stdout.write(f"{name}: {json.dumps(figures, indent=2)}\n")
    if figures is None:
        return
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    results["machine"] = machine()
    results[name.replace("-", "_")] = figures
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
