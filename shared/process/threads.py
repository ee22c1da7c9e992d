"""Number of compute threads, limited to the container's CPU quota.

torch, OpenMP and MKL start one thread for each processor that they see and ignore the container's quota. If more
threads run than the quota allows, the kernel stops all of them for the rest of each period (100 ms by default).
"""

from __future__ import annotations

import contextlib
import os

from shared.process.container_limits import cpu_quota, usable_cpus

_OPENMP, _MKL = "OMP_NUM_THREADS", "MKL_NUM_THREADS"


def limit_threads() -> None:
    """Limit the threads of OpenMP and MKL in this process and its children to the CPU quota, if there is one.

    Call it before torch is imported, which reads the environment. An OMP_NUM_THREADS that is already set is kept.
    """
    if cpu_quota() is not None:
        threads = os.environ.setdefault(_OPENMP, str(usable_cpus()))
        os.environ.setdefault(_MKL, threads)


def set_torch_threads(chosen: int = 0) -> int:
    """Set torch's threads, within an operation and between operations, and return their number.

    If `chosen` is 0, the number is OMP_NUM_THREADS, or else torch's default limited by the container's CPU quota.
    """
    import torch

    threads = chosen or torch.get_num_threads()
    if not chosen and _OPENMP not in os.environ:
        threads = min(threads, usable_cpus())
    torch.set_num_threads(threads)
    with contextlib.suppress(RuntimeError):  # can be set only once, before its first use
        torch.set_num_interop_threads(threads)
    return threads
