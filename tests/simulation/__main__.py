"""`python -m tests.simulation SEED`: one life, with its history. `--seeds FIRST-LAST`: many, as one JSON line.

`--prove`: a JSON line for each bug. `--shrink`: the shortest plan found with which the seed still breaks its promise.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from typing import Any

from tests.simulation.bugs import BUGS
from tests.simulation.clients import TENANTS
from tests.simulation.coverage import not_reached
from tests.simulation.history import History
from tests.simulation.life import BUSY_SECONDS, Outcome, Plan, databases, live, silence
from tests.simulation.shrink import shrink

_LIVES_OF_PROCESS = 50
"""A life leaves its tasks in memory, because collecting them would run the cleanup of killed processes."""


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
    parser.add_argument("--bugs", default=",".join(BUGS), help="only these for --prove, with commas")
    parser.add_argument("--stop", action="store_true", help="stop at the first broken promise")
    parser.add_argument("--busy", type=float, default=BUSY_SECONDS, help="seconds of requests and faults in each life")
    parser.add_argument("--tenants", type=int, default=len(TENANTS), help="number of tenants in each life")
    parser.add_argument("--without", default="", help="kinds of faults that do not happen, with commas")
    parser.add_argument("--shrink", action="store_true", help="look for a smaller life in which SEED breaks a promise")
    parser.add_argument(
        "--processes", type=int, default=1, help="live the lives, or prove the bugs, in this many processes at once"
    )
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
    plan = Plan(given.bug, given.busy, given.tenants, tuple(filter(None, given.without.split(","))))
    with databases(), _lives(given.processes) as each:
        if given.prove:
            return _prove(each, given.bugs.split(","), given.prove)
        if given.seed is None:
            return _many(each, seeds, plan, stop=given.stop, twice=given.twice)
        return _one(given.seed, shrink(given.seed, plan) if given.shrink else plan)


Each = Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]]
"""`map`, whose calls may run in other processes."""


@contextmanager
def _lives(num_processes: int) -> Iterator[Each]:
    if num_processes == 1:
        yield map
        return

    def begin() -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process ends the others
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    with get_context("fork").Pool(num_processes, begin, maxtasksperchild=_LIVES_OF_PROCESS) as pool:
        yield pool.imap


def _one(seed: int, plan: Plan) -> int:
    outcome = live(seed, plan)
    for event in outcome.history.events:
        print(event)
    print(f"seed {seed}: {outcome.virtual_seconds:.0f} s in {outcome.real_seconds:.1f} s, {outcome.history.digest}")
    print(plan)
    for problem in outcome.problems:
        print(f"BROKEN: {problem}")
    return bool(outcome.problems)


def _prove(each: Each, bugs: Sequence[str], most: int) -> int:
    missed = 0
    for found in each(partial(_found, most=most), bugs):
        missed += not found["seed"]
        print(json.dumps(found), flush=True)
    return bool(missed)


def _found(bug: str, most: int) -> dict[str, Any]:
    begun, found = time.perf_counter(), dict[str, Any](bug=bug, seed=None, promise="")
    for seed in range(1, most + 1):
        try:
            problems = live(seed, Plan(bug)).problems
        except Exception as error:  # a bug may break the product so badly that clients see it
            problems = [_cause(error)]
        if problems:
            found |= {"seed": seed, "promise": problems[0][:110]}
            break
    return found | {"lives": seed, "seconds": round(time.perf_counter() - begun)}


def _many(each: Each, seeds: list[int], plan: Plan, *, stop: bool, twice: bool) -> int:
    begun, outcomes, broken = time.perf_counter(), list[Outcome](), dict[str, list[str]]()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with suppress(KeyboardInterrupt):  # the figures are then those of the lives that ended
        for outcome in each(partial(_outcome, plan=plan, twice=twice), seeds):
            outcomes.append(outcome)
            if outcome.problems:
                broken[str(outcome.seed)] = outcome.problems
                print(f"seed {outcome.seed} breaks a promise: {outcome.problems[0]}", file=sys.stderr, flush=True)
                if stop:
                    break
    print(json.dumps(_figures(outcomes, time.perf_counter() - begun, 1 + twice) | {"broken": broken}))
    return bool(broken)


def _outcome(seed: int, plan: Plan, twice: bool) -> Outcome:
    """The outcome without its history."""
    try:
        outcome = live(seed, plan)
    except Exception as error:
        return Outcome(seed, [f"the life ended with {_cause(error)}"], History(), 0.0, 0.0)
    if twice and live(seed, plan).history.digest != outcome.history.digest:
        outcome.problems.append("the seed's second life was different: something is not simulated")
    return replace(outcome, history=History())


def _cause(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"


def _figures(outcomes: list[Outcome], seconds: float, times: int) -> dict[str, Any]:
    faults, edges, meetings = Counter[str](), Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    for outcome in outcomes:
        faults.update(outcome.faults)
        edges.update(outcome.edges)
        meetings.update(outcome.meetings)
    virtual = times * sum(outcome.virtual_seconds for outcome in outcomes)
    return {
        "seeds": len(outcomes),
        "seconds": round(seconds, 1),
        "lives_per_second": round(times * len(outcomes) / seconds, 3),
        "virtual_over_real": round(virtual / seconds, 1),
        "faults": dict(sorted(faults.items())),
        "edges": {f"{before} to {after}": number for (before, after), number in sorted(edges.items())},
        "fault_in_state": {f"{kind} in {state}": number for (kind, state), number in sorted(meetings.items())},
        "not_reached": not_reached(edges, meetings),
    }


if __name__ == "__main__":
    try:
        status = main()
    except Exception:
        traceback.print_exc()
        status = 2
    sys.stdout.flush()
    os._exit(status)  # an orderly end would run the cleanup of all killed processes
