"""The audit log: one line for each requested change or download, performed or refused, and for each action of a job.

The lines go to the logger `softprompt.audit` regardless of the log level, so that they can be routed separately.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

LOGGER = "softprompt.audit"

_log = logging.getLogger(LOGGER)
_log.setLevel(logging.INFO)


def record(action: str, result: str, fields: Mapping[str, object]) -> None:
    """Write a line. `action`: a method's name or a job's action; `result`: the name of a gRPC status code."""
    _log.info("audit", extra={"fields": {"action": action, "result": result, **fields}})
