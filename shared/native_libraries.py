"""Settings of the native libraries inside torch, which read them when they are loaded: before torch is imported.

OpenMP. Torch's one (GNU's libgomp) lets a thread that is done spin for its sisters, for milliseconds. Beside other busy processes that is
ruinous: the spinning thread holds the core that the late sister needs, at every one of some thousand products a step. So threads spin
shortly, then sleep. Measured on two cores, SmolLM2-135M: alone, 20,000 spins cost 3 to 5 percent (1,000 spins a quarter in training, three
quarters in decoding one stream); beside eight other busy processes a training step took 15 s, and with libgomp's own choice over 20 s.

oneDNN. It keeps the code that it generates for each shape of a product, 1,024 of them unless told otherwise, near 0.1 MB each. Inputs are
of any length, so a service's memory would grow by 100 MB over its first hour, and look like a leak. A quarter of them holds what decoding
uses again and again.
"""

from __future__ import annotations

import os

_SPINS = "20000"
_KEPT_KERNELS = "256"


def set_native_defaults() -> None:
    """Call before torch is imported. Whoever set one of a library's variables keeps it."""
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = _SPINS
    if not {"ONEDNN_PRIMITIVE_CACHE_CAPACITY", "DNNL_PRIMITIVE_CACHE_CAPACITY"} & os.environ.keys():
        os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] = _KEPT_KERNELS
