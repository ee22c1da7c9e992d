"""`python -m tests.simulation SEED`: one life, with its history. `--seeds FIRST-LAST`: many, as one JSON line."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from functools import partial

from tests.simulation.bugs import BUGS
from tests.simulation.life import BUSY_SECONDS, Outcome, forget_template, live, silence


def main() -> int:
    """Exit status 1 if a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("seed", type=int, nargs="?", help="run this seed, and print its history")
    parser.add_argument("--seeds", default="", help="FIRST-LAST: run these seeds")
    parser.add_argument("--new", type=int, default=0, help="and this number of seeds that no run had before")
    parser.add_argument("--bug", default="", choices=("", *BUGS), help="with this bug in the product")
    parser.add_argument(
        "--prove", type=int, default=0, help="put in every bug in turn, until one of this many seeds finds it"
    )
    parser.add_argument("--stop", action="store_true", help="stop at the first broken promise")
    parser.add_argument("--busy", type=float, default=BUSY_SECONDS, help="seconds of requests and faults in each life")
    parser.add_argument("--twice", action="store_true", help="live each life twice, and compare the histories")
    given = parser.parse_args()
    if os.environ.get("PYTHONHASHSEED") != "0":  # the order of sets must be that of the replay
        os.execve(
            sys.executable,
            [sys.executable, "-m", "tests.simulation", *sys.argv[1:]],
            os.environ | {"PYTHONHASHSEED": "0"},
        )
    silence()
    first, _, last = given.seeds.partition("-")
    seeds = list(range(int(first), int(last or first) + 1)) if first else []
    seeds += [time.time_ns() // 1000 % 10**9 + number for number in range(given.new)]
    try:
        if given.prove:
            return _prove(given.prove)
        return (
            _one(given.seed, given.bug)
            if given.seed is not None
            else _many(
                seeds, partial(live, with_bug=given.bug, busy_seconds=given.busy), stop=given.stop, twice=given.twice
            )
        )
    finally:
        forget_template()


def _one(seed: int, bug: str) -> int:
    outcome = live(seed, bug)
    for event in outcome.history.events:
        print(event)
    print(f"seed {seed}: {outcome.virtual_seconds:.0f} s in {outcome.real_seconds:.1f} s, {outcome.history.digest}")
    for problem in outcome.problems:
        print(f"BROKEN: {problem}")
    return bool(outcome.problems)


def _prove(most: int) -> int:
    missed = 0
    for bug in BUGS:
        begun = time.perf_counter()
        for seed in range(1, most + 1):
            try:
                problems = live(seed, bug).problems
            except Exception as error:  # a bug may break the product so badly that clients see it
                problems = [f"{type(error).__name__}: {error}"]
            if problems:
                print(f"| {bug} | {seed} | {time.perf_counter() - begun:.0f} | {problems[0][:110]} |", flush=True)
                break
        else:
            missed += 1
            print(f"| {bug} | not within {most} | {time.perf_counter() - begun:.0f} | |", flush=True)
    return bool(missed)


def _many(seeds: list[int], life: Callable[[int], Outcome], *, stop: bool, twice: bool) -> int:
    begun, virtual, faults, broken = time.perf_counter(), 0.0, Counter[str](), dict[str, list[str]]()
    lives = 0
    for seed in seeds:
        outcome = life(seed)
        if twice and life(seed).history.digest != outcome.history.digest:
            outcome.problems.append("the seed's second life was different: something is not simulated")
        lives += 1 + twice
        virtual += outcome.virtual_seconds * (1 + twice)
        faults.update(outcome.faults)
        if outcome.problems:
            broken[str(seed)] = outcome.problems
            print(f"seed {seed} breaks a promise: {outcome.problems[0]}", file=sys.stderr, flush=True)
            if stop:
                break
    real = time.perf_counter() - begun
    figures = {
        "seeds": lives // (1 + twice),
        "broken": broken,
        "seconds": round(real, 1),
        "lives_per_second": round(lives / real, 3),
        "virtual_over_real": round(virtual / real, 1),
        "faults": dict(sorted(faults.items())),
    }
    print(json.dumps(figures))
    return bool(broken)


if __name__ == "__main__":
    try:
        status = main()
    except Exception:
        traceback.print_exc()
        status = 2
    sys.stdout.flush()
    os._exit(status)  # an orderly end would run the cleanup of all killed processes
