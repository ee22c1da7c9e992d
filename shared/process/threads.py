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
_QUOTA = "SOFTPROMPT_QUOTA_THREADS"
"""The number that `limit_threads` set, here or in a parent process: a limit, not the user's choice."""
_FOLLOW_SECONDS = 10.0
_chosen = 0
"""The number that a setting chose; 0: none."""


def limit_threads() -> None:
    """Limit the threads of OpenMP and MKL in this process and its children to the CPU quota, if there is one.

    Call it before torch is imported, which reads the environment. The user's OMP_NUM_THREADS is kept; the limit that a
    parent process set is replaced by this process's own, also an MKL_NUM_THREADS that is equal to it.
    """
    earlier = os.environ.pop(_QUOTA, None)
    for name in (_OPENMP, _MKL):
        if earlier is not None and os.environ.get(name) == earlier:
            del os.environ[name]
    if cpu_quota() is not None:
        if _OPENMP not in os.environ:
            os.environ[_OPENMP] = os.environ[_QUOTA] = str(usable_cpus())
        os.environ.setdefault(_MKL, os.environ[_OPENMP])


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

    def __init__(
        self, threads: int, count: Callable[[], int] = usable_cpus, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`threads` compute now; `count` returns the number of processors, `clock` seconds."""
        self._threads, self._count, self._clock = threads, count, clock
        self._processors, self._due = count(), clock() + _FOLLOW_SECONDS
        self._most = _chosen_threads()
        self._threads_of_all = threads if self._most is None else max(threads, self._processors)

    def new_threads(self) -> int | None:
        """The number of threads to compute with from now on; None: as before.

        In proportion to the processors, for torch may have started with one thread for each core of two processors. At
        most the number that a setting or the user's OMP_NUM_THREADS chose.
        """
        if (now := self._clock()) < self._due:
            return None
        self._due = now + _FOLLOW_SECONDS
        threads = max(1, self._count() * self._threads_of_all // self._processors)
        if self._most is not None:
            threads = min(threads, self._most)
        if threads == self._threads:
            return None
        self._threads = threads
        return threads


def _chosen_threads() -> int | None:
    """The number of threads that a setting or the user's OMP_NUM_THREADS chose."""
    found = os.environ.get(_OPENMP, "")
    first = found.partition(",")[0]
    of_user = int(first) if first.isdecimal() and found != os.environ.get(_QUOTA) else 0
    return _chosen or of_user or None
