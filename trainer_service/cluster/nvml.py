"""The load of GPUs as NVIDIA's driver reports it, through the library that comes with the driver (NVML)."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from functools import cache

LIBRARY = "libnvidia-ml.so.1"
_SUCCESS = 0


class _Utilization(ctypes.Structure):
    """nvmlUtilization_t: percent of the last sample period, which is at most a second."""

    _fields_ = (("gpu", ctypes.c_uint), ("memory", ctypes.c_uint))


def busiest(uuids: Iterable[str], driver: str = LIBRARY) -> float | None:
    """The share of the last sample period in which the busiest of some GPUs computed, between 0 and 1.

    `uuids`: as torch has them; `driver`: name or path of the library. None without NVIDIA's driver, or if it doesn't
    know the load, as for a GPU that is divided (MIG). Takes milliseconds.
    """
    if (library := _library(driver)) is None:
        return None
    found = list[float]()
    for uuid in uuids:
        handle, rates = ctypes.c_void_p(), _Utilization()
        if library.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}".encode(), ctypes.byref(handle)) != _SUCCESS:
            continue
        if library.nvmlDeviceGetUtilizationRates(handle, ctypes.byref(rates)) == _SUCCESS:
            found.append(rates.gpu / 100)
    return max(found, default=None)


@cache
def _library(name: str) -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL(name)
        return library if library.nvmlInit_v2() == _SUCCESS else None
    except (OSError, AttributeError):
        return None
