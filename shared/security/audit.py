"""The audit: one line for every change of state and every download that was asked for, done or refused, and for what
jobs bring about.

Lines of the logger `softprompt.audit`, whatever the log level, so that they can be routed and kept apart.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

LOGGER = "softprompt.audit"

_log = logging.getLogger(LOGGER)
_log.setLevel(logging.INFO)


def record(action: str, result: str, fields: Mapping[str, object]) -> None:
    """`action` is a method's name or what a job did; `result` a gRPC status code's name."""
    _log.info("audit", extra={"fields": {"action": action, "result": result, **fields}})
