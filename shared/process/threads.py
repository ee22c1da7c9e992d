"""How many threads compute. torch, OpenMP and MKL start one for each processor that they see, whatever quota the
container has; threads beyond the quota make the kernel stop all of them for the rest of each period (100 ms by
default).
"""

from __future__ import annotations

import contextlib
import os

from shared.process.container_limits import cpu_quota, usable_cpus

_OPENMP, _MKL = "OMP_NUM_THREADS", "MKL_NUM_THREADS"


def limit_threads() -> None:
    """For this process and those that it starts. Call it before torch is imported, which reads the environment.

    Without a CPU quota nothing changes. An OMP_NUM_THREADS that is set stays.
    """
    if cpu_quota() is not None:
        threads = os.environ.setdefault(_OPENMP, str(usable_cpus()))
        os.environ.setdefault(_MKL, threads)


def set_torch_threads(chosen: int = 0) -> int:
    """Set torch's threads, within an operation and between operations; returns their number. `chosen` 0:
    OMP_NUM_THREADS, else torch's own default, but at most what the container allows.
    """
    import torch

    threads = chosen or torch.get_num_threads()
    if not chosen and _OPENMP not in os.environ:
        threads = min(threads, usable_cpus())
    torch.set_num_threads(threads)
    with contextlib.suppress(RuntimeError):  # may be set once, before its first use
        torch.set_num_interop_threads(threads)
    return threads
