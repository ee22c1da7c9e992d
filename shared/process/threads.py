"""Number of compute threads, limited to the container's CPU quota.

torch, OpenMP and MKL start one thread for each processor that they see and ignore the container's quota. If more
threads run than the quota allows, the kernel stops all of them for the rest of each period (100 ms by default). Quota
and affinity can change while a process runs, for example when a pod is resized in place.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable

from shared.process.container_limits import cpu_quota, usable_cpus

_OPENMP, _MKL = "OMP_NUM_THREADS", "MKL_NUM_THREADS"
_FOLLOW_SECONDS = 10.0
_chosen = 0
"""The number that a setting chose; 0: none."""
_is_limited_here = False
"""Whether OMP_NUM_THREADS is this process's own limit and not the user's choice."""


def limit_threads() -> None:
    """Limit the threads of OpenMP and MKL in this process and its children to the CPU quota, if there is one.

    Call it before torch is imported, which reads the environment. An OMP_NUM_THREADS that is already set is kept.
    """
    global _is_limited_here
    if cpu_quota() is not None:
        _is_limited_here = _OPENMP not in os.environ
        threads = os.environ.setdefault(_OPENMP, str(usable_cpus()))
        os.environ.setdefault(_MKL, threads)


def set_torch_threads(chosen: int = 0) -> int:
    """Set torch's threads, within an operation and between operations, and return their number.

    If `chosen` is 0, the number is OMP_NUM_THREADS, or else torch's default limited by the container's CPU quota.
    """
    import torch

    global _chosen
    _chosen = chosen
    threads = chosen or torch.get_num_threads()
    if not chosen and _OPENMP not in os.environ:
        threads = min(threads, usable_cpus())
    torch.set_num_threads(threads)
    with contextlib.suppress(RuntimeError):  # can be set only once, before its first use
        torch.set_num_interop_threads(threads)
    return threads


class FollowedProcessors:
    """Follows the number of processors that this process may use. Looks at most every ten seconds."""

    def __init__(self, count: Callable[[], int] = usable_cpus, clock: Callable[[], float] = time.monotonic) -> None:
        """`count` returns the number of processors, `clock` seconds."""
        self._count, self._clock = count, clock
        self._last, self._due = count(), clock() + _FOLLOW_SECONDS

    def new_threads(self) -> int | None:
        """The number of threads to compute with from now on; None: as before.

        At most the number that a setting or the user's OMP_NUM_THREADS chose.
        """
        if (now := self._clock()) < self._due:
            return None
        self._due, before = now + _FOLLOW_SECONDS, self._last
        self._last = self._count()
        if self._last == before:
            return None
        return min([self._last, *_most_threads()])


def _most_threads() -> list[int]:
    """The number of threads that was chosen, if any."""
    if _chosen:
        return [_chosen]
    found = os.environ.get(_OPENMP, "").partition(",")[0]
    return [int(found)] if found.isdecimal() and not _is_limited_here else []
