"""How much each caller does, held against their limits. Counts are this process' own, and outlive a reload of the callers file."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from shared.errors import Overloaded
from shared.security.bucket import Bucket
from shared.security.caller import Caller, CallerLimits

_TOKENS_WINDOW_SECONDS = 10.0
_DAY_SECONDS = 86_400.0
_CONCURRENCY_RETRY_SECONDS = 1.0
_SWEEP_AT = 1024


class Usage:
    """What one caller does."""

    def __init__(self, name: str, limits: CallerLimits, clock: Callable[[], float]) -> None:
        self._name, self._clock = name, clock
        self.running = 0
        self.set_limits(limits)

    def set_limits(self, limits: CallerLimits) -> None:
        """Buckets begin full; what runs goes on counting."""
        self.limits, clock = limits, self._clock
        self._requests = _bucket(limits.requests_per_second, 1.0, clock)
        self._tokens = _bucket(limits.tokens_per_second, _TOKENS_WINDOW_SECONDS, clock)
        per_second = None if limits.dataset_bytes_per_day is None else limits.dataset_bytes_per_day / _DAY_SECONDS
        self._bytes = _bucket(per_second, _DAY_SECONDS, clock)

    @property
    def is_idle(self) -> bool:
        return not self.running and all(bucket is None or bucket.is_full for bucket in (self._requests, self._tokens, self._bytes))

    def begin(self) -> None:
        """Count one call. Raises Overloaded, having counted nothing."""
        most = self.limits.concurrent_calls
        if most is not None and self.running >= most:
            raise self._exceeded(f"{self.running} of your calls are running; at most {most} may", _CONCURRENCY_RETRY_SECONDS)
        if self._requests is not None and (wait := self._requests.seconds_until(1.0)):
            raise self._exceeded(f"you may make {self.limits.requests_per_second:g} requests a second", wait)
        if self._tokens is not None and (wait := self._tokens.seconds_until(1.0)):
            raise self._exceeded(f"you may use {self.limits.tokens_per_second:g} tokens a second", wait)
        if self._requests is not None:
            self._requests.take(1.0)
        self.running += 1

    def charge_tokens(self, num_tokens: int) -> None:
        if self._tokens is not None:
            self._tokens.take(num_tokens)

    def charge_bytes(self, num_bytes: int) -> None:
        """Raises Overloaded, having charged nothing."""
        self.check_bytes(num_bytes)
        if self._bytes is not None:
            self._bytes.take(num_bytes)

    def check_bytes(self, num_bytes: int) -> None:
        """Whether so many fit, so that an upload that announces its size is refused at its first message."""
        if self._bytes is not None and num_bytes > self._bytes.level:
            text = f"you may store {self.limits.dataset_bytes_per_day:.0f} bytes of datasets a day; {self._bytes.level:.0f} are left"
            raise self._exceeded(text, max(1.0, self._bytes.seconds_until(num_bytes)))

    def _exceeded(self, text: str, retry_after_seconds: float) -> Overloaded:
        return Overloaded(text, retry_after_seconds=retry_after_seconds, caller=self._name)


class Quotas:
    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._usages: dict[str, Usage] = {}

    @contextmanager
    def taken(self, caller: Caller) -> Iterator[Usage]:
        """One call of this caller. Raises Overloaded."""
        usage = self._usage(caller)
        usage.begin()
        try:
            yield usage
        finally:
            usage.running -= 1

    def _usage(self, caller: Caller) -> Usage:
        found = self._usages.get(caller.name)
        if found is None:
            if len(self._usages) >= _SWEEP_AT:
                self._usages = {name: usage for name, usage in self._usages.items() if not usage.is_idle}
            found = self._usages[caller.name] = Usage(caller.name, caller.limits, self._clock)
        elif found.limits != caller.limits:
            found.set_limits(caller.limits)
        return found


def _bucket(rate: float | None, window_seconds: float, clock: Callable[[], float]) -> Bucket | None:
    return None if rate is None else Bucket(rate, max(1.0, rate * window_seconds), clock)
