"""The engine's compiled kernels (`native_kernels.c`), loaded once. `native_modules` is what stands on them."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

from shared import native_code

SOURCE = Path(__file__).with_name("native_kernels.c")


@functools.cache
def load() -> ctypes.CDLL | None:
    """None where they can't be had: `native_code.load` says why."""
    kernels = native_code.load(SOURCE)
    if kernels is None:
        return None
    kernels.linear.argtypes = [ctypes.c_void_p] * 4 + [ctypes.c_int64] * 3 + [ctypes.c_int]
    kernels.linear.restype = ctypes.c_int
    kernels.rms_norm.argtypes = [ctypes.c_void_p] * 3 + [ctypes.c_int64] * 2 + [ctypes.c_float]
    kernels.rms_norm.restype = None
    kernels.attention.argtypes = [ctypes.c_void_p] * 8 + [ctypes.c_int64] * 9 + [ctypes.c_float, ctypes.c_int]
    kernels.attention.restype = ctypes.c_int
    return kernels
