"""Simulates fair sharing between tenants and base models with the scheduler's own code on a virtual clock.

    python -m benchmarks.fairness

Job durations are drawn from an exponential distribution with a fixed seed. Writes benchmarks/results/fairness.json.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.fairness.simulator import History, SimulatedJob, Simulator

RESULTS = Path(__file__).parent.parent / "results" / "fairness.json"
JOB_SECONDS = 600.0
HOUR = 3600.0


def jobs_of(tenant: str, base_model: str, count: int, arrives: float = 0.0, seed: int = 0) -> list[SimulatedJob]:
    draw = random.Random(f"{tenant} {base_model} {seed}")
    return [SimulatedJob(tenant, base_model, arrives, draw.expovariate(1 / JOB_SECONDS)) for _ in range(count)]


def waits(history: History, jobs: Sequence[SimulatedJob], tenant: str) -> dict[str, float]:
    """Seconds from a job's arrival to its start on a worker."""
    seconds = [
        history.started[number] - job.arrives
        for number, job in enumerate(jobs)
        if job.tenant == tenant and number in history.started
    ]
    return {
        "jobs_started": len(seconds),
        "mean_seconds": round(statistics.fmean(seconds), 1),
        "worst_seconds": round(max(seconds), 1),
    }


def five_thousand_and_one() -> dict[str, Any]:
    """One tenant has 5,000 queued jobs and uses all workers; an hour later, another tenant submits a single job."""
    jobs = [*jobs_of("many", "a", 5000), SimulatedJob("one", "a", HOUR, JOB_SECONDS)]
    history = Simulator(jobs, max_workers=4).run()
    mine = len(jobs) - 1
    start = history.started[mine]
    overtaken_by = sum(HOUR < at < start for number, at in history.started.items() if number != mine)
    return {
        "one": waits(history, jobs, "one"),
        "many": waits(history, jobs, "many"),
        "jobs_of_many_started_between": overtaken_by,
        "by_arrival_it_would_have_waited_seconds": round(sum(job.seconds for job in jobs[:-1]) / 32 - HOUR),
    }


def weights() -> dict[str, Any]:
    """Three backlogged tenants of weights 1, 2 and 4 on 4 workers for 24 hours; shares in windows of 4 hours."""
    shares = {"one": 1.0, "two": 2.0, "four": 4.0}
    jobs = [job for tenant in shares for job in jobs_of(tenant, "a", 4700)]
    history = Simulator(jobs, max_workers=4, weights=shares).run(until=24 * HOUR)
    wanted = {tenant: weight / sum(shares.values()) for tenant, weight in shares.items()}
    windows = [history.shares(hour * HOUR, (hour + 4) * HOUR) for hour in range(0, 24, 4)]
    errors = [abs(window[tenant] / wanted[tenant] - 1) for window in windows for tenant in shares]
    return {
        "shares_by_window": [{tenant: round(share, 4) for tenant, share in window.items()} for window in windows],
        "wanted": {tenant: round(share, 4) for tenant, share in wanted.items()},
        "largest_relative_error": round(max(errors), 4),
    }


def pool_of_one_model() -> dict[str, Any]:
    """29 workers hold model `a` with one job each, and one full worker holds `b`; 5,000 jobs wait for `b`, and one job
    for `a` arrives every two minutes.
    """
    running = [*jobs_of("x", "a", 29, seed=1), *jobs_of("x", "b", 8, seed=1)]
    waiting = jobs_of("x", "b", 5000, seed=2)
    trickle = [job for minute in range(0, 240, 2) for job in jobs_of("x", "a", 1, minute * 60.0, seed=minute)]
    jobs = [*running, *waiting, *trickle]
    workers = [*(("a", [number]) for number in range(29)), ("b", list(range(29, 37)))]
    history = Simulator(jobs, max_workers=30, workers=workers).run(until=4 * HOUR)
    last = len(running) + len(waiting)
    late = [
        history.started[number] - jobs[number].arrives for number in range(last, len(jobs)) if number in history.started
    ]
    return {
        "workers_after_half_an_hour": dict(sorted(_workers_at(history, HOUR / 2).items())),
        "workers_after_two_hours": dict(sorted(_workers_at(history, 2 * HOUR).items())),
        "jobs_of_b_started_in_four_hours": sum(len(running) <= number < last for number in history.started),
        "trickle_of_a": {
            "jobs_started": len(late),
            "mean_seconds": round(statistics.fmean(late), 1),
            "worst_seconds": round(max(late), 1),
        },
        "model_switches": history.switches,
    }


def cold_start() -> dict[str, Any]:
    """240 jobs for `a`, and one second later ten for each of nine other models, on an empty pool of 30 workers."""
    jobs = [*jobs_of("x", "a", 240), *(job for number in range(9) for job in jobs_of("x", f"m{number}", 10, 1.0))]
    history = Simulator(jobs, max_workers=30).run()
    first = _workers_at(history, 30.0)
    worst = max(history.started[number] - job.arrives for number, job in enumerate(jobs))
    return {
        "workers_after_half_a_minute": dict(sorted(first.items())),
        "worst_wait_seconds": round(worst),
        "model_switches": history.switches,
    }


def alone_at_the_head() -> dict[str, Any]:
    """30 workers run one job of an hour each; the first waiting job must run alone, and 100 ordinary jobs follow it."""
    running = [SimulatedJob("x", "a", 0.0, HOUR + 10.0 * number) for number in range(30)]
    alone = SimulatedJob("x", "a", 0.0, JOB_SECONDS, exclusive=True)
    jobs = [*running, alone, *jobs_of("x", "a", 100)]
    history = Simulator(jobs, max_workers=30, workers=[("a", [number]) for number in range(30)]).run()
    ordinary = [history.started[number] for number in range(31, len(jobs))]
    return {
        "alone_starts_after_seconds": round(history.started[30]),
        "last_of_100_others_starts_after_seconds": round(max(ordinary)),
    }


def back_after_a_pause() -> dict[str, Any]:
    """Two equal tenants: one has no jobs for ten hours while the other uses all workers; then both are backlogged."""
    jobs = [*jobs_of("steady", "a", 6000), *jobs_of("back", "a", 200), *jobs_of("back", "a", 3000, 12 * HOUR, seed=1)]
    history = Simulator(jobs, max_workers=4).run(until=20 * HOUR)
    hours = [history.shares(hour * HOUR, (hour + 1) * HOUR).get("back", 0.0) for hour in range(12, 20)]
    return {
        "share_of_the_one_that_was_away": round(history.shares(6 * HOUR, 12 * HOUR).get("back", 0.0), 4),
        "its_share_by_hour_after_its_return": [round(share, 4) for share in hours],
    }


def _workers_at(history: History, at: float) -> dict[str, int]:
    latest = [dict(workers) for time, workers in history.workers if time <= at]
    return latest[-1] if latest else {}


SCENARIOS: dict[str, Callable[[], dict[str, Any]]] = {
    "five_thousand_and_one": five_thousand_and_one,
    "weights_1_2_4": weights,
    "pool_of_one_model": pool_of_one_model,
    "cold_start": cold_start,
    "alone_at_the_head": alone_at_the_head,
    "back_after_a_pause": back_after_a_pause,
}


def main() -> None:
    results = {
        "setting": {"mean_job_seconds": JOB_SECONDS, "places_of_a_worker": 8, "model_load_seconds": 30.0},
        **{name: scenario() for name, scenario in SCENARIOS.items()},
    }
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    sys.stdout.write(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
