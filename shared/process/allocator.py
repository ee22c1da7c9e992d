"""Configures glibc's malloc for tensors.

By default glibc maps every large block anew and unmaps it when it is freed. On a virtual machine the resulting page
faults cost more than the arithmetic (a training step of 1.8 s took 4.8 s). Keeping freed memory in the heap avoids
them.
"""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # malloc.h


def tune_allocator() -> bool:
    """Keep large blocks in the heap for reuse; returns False if malloc isn't glibc's.

    Call it at the start of a process that computes with tensors.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    results = [mallopt(_M_MMAP_MAX, 0), mallopt(_M_TRIM_THRESHOLD, 2**31 - 1), mallopt(_M_TOP_PAD, 64 << 20)]
    return all(results)
