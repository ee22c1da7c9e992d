"""`python -m benchmarks.load overload|neighbour|soak`: exits with 1 if a promise does not hold."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.load.meter import Meter
from benchmarks.load.neighbour import SETTINGS as NEIGHBOUR_SETTINGS
from benchmarks.load.neighbour import Tenants, neighbour
from benchmarks.load.overload import overload
from benchmarks.load.replica import running_replica
from benchmarks.load.soak import SETTINGS, soak
from benchmarks.machine import machine

AT_ONCE, MAX_WAITING = 16, 32


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load", description=__doc__)
    parser.add_argument("case", choices=["overload", "neighbour", "soak"])
    parser.add_argument("--model", type=Path, required=True, help="a model directory")
    parser.add_argument("--seconds", type=float, help="duration [overload and neighbour 120, soak 1200]")
    parser.add_argument("--factor", type=float, default=5.0, help="overload: load as a multiple of the capacity")
    parser.add_argument("--output", type=Path, help="JSON file [benchmarks/results/CASE.json]")
    arguments = parser.parse_args()
    measure = {"overload": _overload, "neighbour": _neighbour, "soak": _soak}[arguments.case]
    figures, failures = asyncio.run(measure(arguments))
    output = arguments.output or Path(f"benchmarks/results/{arguments.case}.json")
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps({"machine": machine(), **figures, "failures": failures}, indent=2) + "\n")
    sys.stdout.write(json.dumps(figures, indent=2) + "\n" + "".join(f"FAILED: {failure}\n" for failure in failures))
    return 1 if failures else 0


async def _overload(arguments: argparse.Namespace) -> tuple[dict[str, Any], tuple[str, ...]]:
    settings = {"MAX_RUNNING": str(AT_ONCE), "MAX_WAITING": str(MAX_WAITING)}
    seconds = arguments.seconds or 120.0
    with tempfile.TemporaryDirectory() as directory:
        async with running_replica(arguments.model, Path(directory), settings) as (replica, _):
            meter = Meter(replica.ready.pid, replica.ready.metrics_port)
            result = await overload(
                replica.endpoint,
                meter,
                at_once=AT_ONCE,
                max_waiting=MAX_WAITING,
                calibrate_seconds=max(10.0, seconds / 6),
                seconds=seconds,
                factor=arguments.factor,
            )
    return result.figures, result.failures


async def _neighbour(arguments: argparse.Namespace) -> tuple[dict[str, Any], tuple[str, ...]]:
    with tempfile.TemporaryDirectory() as directory:
        tenants = Tenants(Path(directory))
        settings = {**NEIGHBOUR_SETTINGS, "CALLERS_FILE": str(tenants.path)}
        async with running_replica(arguments.model, Path(directory), settings) as (replica, publisher):
            return await neighbour(replica, publisher, tenants, arguments.seconds or 120.0)


async def _soak(arguments: argparse.Namespace) -> tuple[dict[str, Any], tuple[str, ...]]:
    with tempfile.TemporaryDirectory() as directory:
        async with running_replica(arguments.model, Path(directory), SETTINGS) as (replica, publisher):
            meter = Meter(replica.ready.pid, replica.ready.metrics_port)
            return await soak(replica, publisher, meter, arguments.seconds or 1200.0)


if __name__ == "__main__":
    sys.exit(main())
