"""How threads of a matrix product wait for each other.

Torch's OpenMP (GNU's libgomp) lets a thread that is done spin for its sisters, for milliseconds. Beside other busy processes that is
ruinous: the spinning thread holds the core that the late sister needs, at every one of some thousand products a step. So threads spin
shortly, then sleep. Measured on two cores, SmolLM2-135M: alone, 20,000 spins cost 3 to 5 percent (1,000 spins a quarter in training, three
quarters in decoding one stream); beside eight other busy processes a training step took 15 s, and with libgomp's own choice over 20 s.
"""

from __future__ import annotations

import os

_SPINS = "20000"


def wait_politely() -> None:
    """Call before torch is imported: libgomp reads its settings when it is loaded. Whoever set one of them keeps it."""
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = _SPINS
