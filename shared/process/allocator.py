"""glibc's malloc, set for tensors.

By default glibc maps every large block afresh and gives it back at once; on a virtual machine the page faults of that
cost more than the arithmetic (a training step of 1.8 s became 4.8 s). Keeping freed memory in the heap takes it away.
"""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # malloc.h


def tune_allocator() -> bool:
    """Keep large blocks in the heap for reuse. Call at the start of a process that runs tensors. False where malloc
    isn't glibc's.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    results = [mallopt(_M_MMAP_MAX, 0), mallopt(_M_TRIM_THRESHOLD, 2**31 - 1), mallopt(_M_TOP_PAD, 64 << 20)]
    return all(results)
