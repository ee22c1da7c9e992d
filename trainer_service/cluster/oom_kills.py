"""Detects whether the kernel killed a process of this control group for memory, which Ray doesn't report.

It covers only the control group of this process, which workers share if Ray is embedded. The kernel only counts kills:
if another process of the group was killed just before a worker died for another reason, the worker's death is
attributed to memory.
"""

from __future__ import annotations

from pathlib import Path

from shared.process.container_limits import out_of_memory_counts


class OomKills:
    """Attributes kills to deaths, each kill to at most one death. Without the kernel's counter, it attributes none."""

    def __init__(self, events: Path | None = None) -> None:
        """`events`: the file with the kernel's counter; None: the file of this process' group."""
        self._events = out_of_memory_counts() if events is None else events
        self._seen = self._count()

    def explain_a_death(self) -> bool:
        """Whether there was a kill since the last call. The kernel counts before it kills, so no wait is needed."""
        count = self._count()
        explained, self._seen = count > self._seen, count
        return explained

    def _count(self) -> int:
        if self._events is None:
            return 0
        try:
            counts = dict(line.split() for line in self._events.read_text().splitlines())
            return int(counts.get("oom_kill", 0))
        except (OSError, ValueError):
            return 0
