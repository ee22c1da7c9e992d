"""Damaged inputs for some or all targets, in turn; prints findings, and one JSON line for each target.

Exit status 1 with findings.
"""

from __future__ import annotations

import argparse
import json
import logging
import resource
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from shared.config import ConfigError
from shared.errors import SoftPromptError
from tests.fuzz.readers import Reader, readers
from tests.fuzz.services import services

SLOW_SECONDS = 1.0
"""Of processor time, so that other processes make no findings, and twice, so that a round of the garbage collector over
a large heap makes none. Services may work for longer; they have a deadline.
"""
LARGE_BYTES = 256 << 20
SERVICES = ("rpc", "http")
ALLOWED = (SoftPromptError, ConfigError)


@dataclass
class Tally:
    """What a target did with its inputs."""

    target: str
    inputs: int = 0
    refused: int = 0
    seconds: float = 0.0
    findings: list[tuple[int, str]] = field(default_factory=list)

    def as_json(self) -> dict[str, object]:
        return {
            "target": self.target,
            "inputs": self.inputs,
            "refused": self.refused,
            "seconds": round(self.seconds, 1),
            "findings": len(self.findings),
        }


def feed(target: str, reader: Reader, number: int, tally: Tally) -> None:
    """Gives a target its input of this number."""
    before = _peak_bytes()
    took, refused, problem = _read(target, reader, number)
    if not problem and took > SLOW_SECONDS and target not in SERVICES:
        took = min(took, _read(target, reader, number)[0])
        if took > SLOW_SECONDS:
            problem = f"took {took:.1f} s of processor time"
    tally.refused += refused
    grown = _peak_bytes() - before
    if not problem and grown > LARGE_BYTES:
        problem = f"took {grown >> 20} MiB"
    tally.inputs, tally.seconds = tally.inputs + 1, tally.seconds + took
    if problem:
        tally.findings.append((number, problem))


def _read(target: str, reader: Reader, number: int) -> tuple[float, bool, str]:
    """Seconds of processor time, whether the input was refused, and the traceback of any other error."""
    started, refused, problem = time.process_time(), False, ""
    try:
        reader(Random(f"{target} {number}"))
    except ALLOWED:
        refused = True
    except Exception:
        problem = traceback.format_exc()
    return time.process_time() - started, refused, problem


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def _targets(names: list[str], directory: Path, stack: ExitStack) -> Iterator[tuple[str, Reader]]:
    found = readers(directory / "readers")
    wanted = names or [*found, *SERVICES]
    if set(SERVICES) & set(wanted):
        found |= stack.enter_context(services(directory / "services"))
    for name in wanted:
        if name not in found:
            raise SystemExit(f"no target {name!r}; there are {', '.join(found)}")
        yield name, found[name]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", help="default: all")
    parser.add_argument("--inputs", type=int, default=1000, help="inputs for each target")
    parser.add_argument("--first", type=int, default=1, help="number of the first input")
    given = parser.parse_args()
    logging.disable()  # readers log what they refuse
    failed = False
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        for name, reader in _targets(given.targets, Path(scratch), stack):
            tally = Tally(name)
            for number in range(given.first, given.first + given.inputs):
                feed(name, reader, number, tally)
            for number, problem in tally.findings[:20]:
                print(f"{name} --first {number} --inputs 1: {problem}", file=sys.stderr)
            print(json.dumps(tally.as_json()), flush=True)
            failed |= bool(tally.findings)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
