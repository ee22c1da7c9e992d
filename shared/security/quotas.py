"""Counts the use of each caller and tenant, and enforces their limits.

Each process counts separately (`shared.security.shared_limits` counts rates over all). The counts survive a reload of
the callers file.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from shared.caller import Caller, CallerLimits
from shared.errors import Overloaded
from shared.security.bucket import Bucket

TOO_MANY_REQUESTS = "{subject} may make {rate:g} requests a second (requests_per_second)"
TOO_MANY_TOKENS = "{subject} may use {rate:g} tokens a second (tokens_per_second)"

_TOKENS_WINDOW_SECONDS = 10.0
_DAY_SECONDS = 86_400.0
_CONCURRENCY_RETRY_SECONDS = 1.0
_SWEEP_AT = 1024
_POSSESSIVE = {"you": "your", "your tenant": "your tenant's"}


class CallerUsage:
    """Use of one caller or tenant. `subject` names it in errors: "you" or "your tenant"."""

    def __init__(self, name: str, limits: CallerLimits, clock: Callable[[], float], subject: str = "you") -> None:
        self._name, self._clock, self._subject = name, clock, subject
        self.running = 0
        self.set_limits(limits)

    def set_limits(self, limits: CallerLimits) -> None:
        """Set new limits. Rate limits start with full buckets; running calls stay counted."""
        self.limits, clock = limits, self._clock
        self._requests = _bucket(limits.requests_per_second, 1.0, clock)
        self._tokens = _bucket(limits.tokens_per_second, _TOKENS_WINDOW_SECONDS, clock)
        per_second = None if limits.dataset_bytes_per_day is None else limits.dataset_bytes_per_day / _DAY_SECONDS
        self._bytes = _bucket(per_second, _DAY_SECONDS, clock)

    @property
    def is_idle(self) -> bool:
        """Whether nothing runs and all buckets are full, so that the object can be dropped."""
        return not self.running and all(
            bucket is None or bucket.is_full for bucket in (self._requests, self._tokens, self._bytes)
        )

    def begin(self) -> None:
        """Count the start of a call. If a limit is reached, raises Overloaded and counts nothing."""
        most = self.limits.concurrent_calls
        if most is not None and self.running >= most:
            raise self._exceeded(
                f"{self.running} of {_POSSESSIVE[self._subject]} calls are running; the limit (concurrent_calls) is "
                f"{most}",
                _CONCURRENCY_RETRY_SECONDS,
            )
        if self._requests is not None and (wait := self._requests.seconds_until(1.0)):
            text = TOO_MANY_REQUESTS.format(subject=self._subject, rate=self.limits.requests_per_second)
            raise self._exceeded(text, wait)
        if self._tokens is not None and (wait := self._tokens.seconds_until(1.0)):
            text = TOO_MANY_TOKENS.format(subject=self._subject, rate=self.limits.tokens_per_second)
            raise self._exceeded(text, wait)
        if self._requests is not None:
            self._requests.take(1.0)
        self.running += 1

    def end(self) -> None:
        """Count the end of a call that `begin` counted."""
        self.running -= 1

    def charge_tokens(self, num_tokens: int) -> None:
        """Charge tokens; the bucket may be overdrawn."""
        if self._tokens is not None:
            self._tokens.take(num_tokens)

    def charge_bytes(self, num_bytes: int) -> None:
        """Charge bytes of a dataset. If they exceed the limit, raises Overloaded and charges nothing."""
        self.check_bytes(num_bytes)
        if self._bytes is not None:
            self._bytes.take(num_bytes)

    def check_bytes(self, num_bytes: int) -> None:
        """Raises Overloaded if `num_bytes` exceed the limit. Lets an upload fail when it announces its size."""
        if self._bytes is not None and num_bytes > self._bytes.level:
            allowed, left = f"{self.limits.dataset_bytes_per_day:.0f}", f"{self._bytes.level:.0f}"
            text = (
                f"{self._subject} may upload {allowed} bytes of datasets a day (dataset_bytes_per_day); {left} are left"
            )
            raise self._exceeded(text, max(1.0, self._bytes.seconds_until(num_bytes)))

    def _exceeded(self, text: str, retry_after_seconds: float) -> Overloaded:
        return Overloaded(text, retry_after_seconds=retry_after_seconds, caller=self._name)


@dataclass(frozen=True)
class Charges:
    """Charges a call to its caller and its tenant."""

    usages: tuple[CallerUsage, ...]

    def charge_tokens(self, num_tokens: int) -> None:
        """Charge tokens to caller and tenant."""
        for usage in self.usages:
            usage.charge_tokens(num_tokens)

    def check_bytes(self, num_bytes: int) -> None:
        """Raises Overloaded if `num_bytes` exceed the limit of the caller or the tenant."""
        for usage in self.usages:
            usage.check_bytes(num_bytes)

    def charge_bytes(self, num_bytes: int) -> None:
        """Charge bytes to caller and tenant. If one limit is exceeded, raises Overloaded and charges neither."""
        self.check_bytes(num_bytes)
        for usage in self.usages:
            usage.charge_bytes(num_bytes)


class Quotas:
    """Usage of all callers and tenants."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._callers: dict[str, CallerUsage] = {}
        self._tenants: dict[str, CallerUsage] = {}

    @contextmanager
    def taken(self, caller: Caller) -> Iterator[Charges]:
        """Count a call of this caller inside the `with` block. Raises Overloaded."""
        usages = (
            self._usage(self._callers, caller.name, caller.limits, "you"),
            self._usage(self._tenants, caller.tenant.name, caller.tenant.limits, "your tenant"),
        )
        with ExitStack() as begun:
            for usage in usages:
                usage.begin()
                begun.callback(usage.end)
            yield Charges(usages)

    def _usage(self, usages: dict[str, CallerUsage], name: str, limits: CallerLimits, subject: str) -> CallerUsage:
        found = usages.get(name)
        if found is None:
            if len(usages) >= _SWEEP_AT:
                for idle in [name for name, usage in usages.items() if usage.is_idle]:
                    del usages[idle]
            found = usages[name] = CallerUsage(name, limits, self._clock, subject)
        elif found.limits != limits:
            found.set_limits(limits)
        return found


def _bucket(rate: float | None, window_seconds: float, clock: Callable[[], float]) -> Bucket | None:
    return None if rate is None else Bucket(rate, max(1.0, rate * window_seconds), clock)
