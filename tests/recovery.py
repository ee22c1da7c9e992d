"""How long each fault test saw until its job went on. `make bench-jobs` has them written to a file; otherwise they are
forgotten.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

VARIABLE = "RECOVERY_TIMES_FILE"
IS_MEASURED = VARIABLE in os.environ
"""Whether faults last as long as in practice. Ordinary test runs have shorter ones."""


def note(fault: str, seconds: float) -> None:
    """`seconds`: from the fault to the next training step, or to whatever else the test waits for."""
    if target := os.environ.get(VARIABLE):
        path = Path(target)
        known = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps({**known, fault: round(seconds, 2)}, indent=2))
