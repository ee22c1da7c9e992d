"""Whether the kernel has killed a process of this control group for memory: Ray tells such a death from no other.

Only of this process' own control group, which workers share where Ray is embedded. The kernel counts and names nobody:
if another process of the group was killed just before a worker died of something else, that is taken for the worker's
reason.
"""

from __future__ import annotations

from pathlib import Path

from shared.process.container_limits import out_of_memory_counts


class OomKills:
    """Each kill explains one death. Where nothing is counted, none is explained."""

    def __init__(self, events: Path | None = None) -> None:
        """`events`: the file with the kernel's count; None: that of this process' group."""
        self._events = out_of_memory_counts() if events is None else events
        self._seen = self._count()

    def explain_a_death(self) -> bool:
        """There were kills that explained none yet. The kernel counts before it kills: no wait is needed."""
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
