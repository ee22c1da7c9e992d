"""Limits failed authentications by address: after a few free attempts, further ones must wait and are not checked."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

from shared.errors import Overloaded
from shared.security.bucket import Bucket

FREE_FAILURES = 10
FAILURES_PER_SECOND = 0.5
MAX_PEERS = 10_000


class FailureLimiter:
    """Counts failed authentications of the MAX_PEERS addresses that failed last."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._peers: OrderedDict[str, Bucket] = OrderedDict()

    def check(self, peer: str) -> None:
        """Raises Overloaded while the peer must wait."""
        bucket = self._peers.get(peer)
        if bucket is not None and (wait := bucket.seconds_until(1.0)):
            raise Overloaded(
                "too many invalid tokens came from your address; wait, then try a valid one", retry_after_seconds=wait
            )

    def failed(self, peer: str) -> None:
        """Record a failed authentication."""
        bucket = self._peers.pop(peer, None) or Bucket(FAILURES_PER_SECOND, FREE_FAILURES, self._clock)
        bucket.take(1.0)
        self._peers[peer] = bucket
        if len(self._peers) > MAX_PEERS:
            self._peers.popitem(last=False)
