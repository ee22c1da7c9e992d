"""Settings of the libraries inside torch. They are read on loading, so they must be set before torch is imported.

OpenMP. In torch's build (GNU's libgomp), a thread that has finished spins for milliseconds while it waits for the
others. Beside other busy processes this is very slow: the spinning thread holds the core that the late thread needs, at
each of some thousand products per step. With this setting, threads spin briefly and then sleep. Measured on two cores,
SmolLM2-135M: alone, 20,000 spins cost 3 to 5 percent (1,000 spins cost a quarter in training, three quarters in
decoding one stream); beside eight other busy processes a training step took 15 s, with libgomp's default over 20 s.

oneDNN. It caches the code that it generates for each shape of a product: 1,024 entries by default, of about 0.1 MB
each. Inputs have any length, so a service's memory would grow by 100 MB over its first hour and look like a leak. A
quarter of the entries is enough for the shapes that decoding reuses.
"""

from __future__ import annotations

import os

_SPINS = "20000"
_KEPT_PRODUCTS = "256"


def set_native_defaults() -> None:
    """Sets both, unless the environment sets one of the library's own variables. Call before torch is imported."""
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = _SPINS
    if not {"ONEDNN_PRIMITIVE_CACHE_CAPACITY", "DNNL_PRIMITIVE_CACHE_CAPACITY"} & os.environ.keys():
        os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] = _KEPT_PRODUCTS
