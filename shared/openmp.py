"""How threads of a matrix product wait for each other.

Torch's OpenMP (GNU's libgomp) lets a thread that is done spin for its sisters, about a millisecond. Alone on a machine that is the fastest
way; beside any other busy process it is ruinous: the spinning thread holds the core that the late sister needs, at every one of some
thousand products a step (a training step of 1.5 s took 20 s and more). So threads spin shortly, then sleep.
"""

from __future__ import annotations

import os

_SPINS = "1000"


def wait_politely() -> None:
    """Call before torch is imported: libgomp reads its settings when it is loaded. Whoever set one of them keeps it."""
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = _SPINS
