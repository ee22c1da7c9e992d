"""Nodes of a Ray cluster that are about to go: Ray's own record of them, which its autoscaler, `ray drain-node` and our
node agent (`node_agent`) write. Ray places no new workers there, and a drained node ends once it has none.
"""

from __future__ import annotations

import logging
import time
from typing import Any

from shared.errors import Unavailable
from shared.process.call_pool import CallPool

log = logging.getLogger(__name__)

_READ_SECONDS = 1.0
"""Interval between reads."""
_TIMEOUT_SECONDS = 5.0


class DrainingNodes:
    """What the cluster that this process has joined says about its nodes; at most one read per second."""

    def __init__(self, calls: CallPool) -> None:
        self._calls = calls
        self._ids: frozenset[str] = frozenset()
        self._read_at = 0.0

    async def contains(self, node_id: str) -> bool:
        """Whether the node is being drained. While the cluster's head does not answer, the last answer holds."""
        if time.monotonic() - self._read_at >= _READ_SECONDS:
            self._read_at = time.monotonic()
            try:
                self._ids = await self._calls.call(_read)
            except (Unavailable, RuntimeError, ValueError, OSError) as error:
                log.debug("the draining nodes can't be read: %s", error)
        return node_id in self._ids


def _read() -> frozenset[str]:
    from ray._private.worker import global_worker

    client: Any = global_worker.gcs_client
    return frozenset(client.get_draining_nodes(timeout=_TIMEOUT_SECONDS))
