"""Detects workers that answer polls but make no progress. Another thread than the step thread answers polls, so the
step thread can hang unnoticed: a deadlock, a kernel that never ends, an unavailable file system.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from trainer_service.cluster.interface import WorkerReport


class Liveness:
    """Judges one worker by its reports. `step_seconds` is the longest time that one step may take."""

    def __init__(self, step_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._step_seconds, self._clock = step_seconds, clock
        self._asked_at: dict[tuple[str, int], float] = {}
        """When each pending stop was first requested, by job and attempt."""

    def asked_to_stop(self, job_id: str, attempt: int) -> None:
        """Records a stop request. Safe to repeat: the first request counts."""
        self._asked_at.setdefault((job_id, attempt), self._clock())

    def why_lost(self, report: WorkerReport) -> str:
        """Why the worker must be given up; empty if it works. Evaluate reports on arrival; their age is not tracked.
        The time to load the base model is not limited here.
        """
        self._asked_at = {
            (job, attempt): at for (job, attempt), at in self._asked_at.items() if report.attempts.get(job) == attempt
        }
        if report.ready and report.busy_seconds > self._step_seconds:
            return f"it hangs: one step has taken {report.busy_seconds:.0f} s (limit {self._step_seconds:g} s)"
        waiting_seconds = self._clock() - min(self._asked_at.values(), default=self._clock())
        if waiting_seconds > 2 * self._step_seconds:
            return f"it hangs: a job has not stopped {waiting_seconds:.0f} s after the request"
        return ""
