"""Whether a worker that answers also works. Polls are answered beside its step thread, which may hang for ever: a
deadlock, a kernel that never ends, a file system that is away.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from trainer_service.cluster.interface import WorkerReport


class Liveness:
    """Of one worker, by what it reports."""

    def __init__(self, step_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._step_seconds, self._clock = step_seconds, clock
        self._asked_at: dict[tuple[str, int], float] = {}
        """When each stop that it has not yet obeyed was asked for first, by job and attempt."""

    def asked_to_stop(self, job_id: str, attempt: int) -> None:
        """Safe to repeat: the first time counts."""
        self._asked_at.setdefault((job_id, attempt), self._clock())

    def why_lost(self, report: WorkerReport) -> str:
        """For people; empty while all is well. Judge a report when it comes: it grows old. How long loading may take is
        not judged here.
        """
        self._asked_at = {
            (job, attempt): at for (job, attempt), at in self._asked_at.items() if report.attempts.get(job) == attempt
        }
        if report.ready and report.busy_seconds > self._step_seconds:
            return f"it hangs: one step has been going on for {report.busy_seconds:.0f} s, {self._step_seconds:g} s are allowed"
        waiting_seconds = self._clock() - min(self._asked_at.values(), default=self._clock())
        if waiting_seconds > 2 * self._step_seconds:
            return f"it hangs: a job was asked to stop {waiting_seconds:.0f} s ago and is still there"
        return ""
