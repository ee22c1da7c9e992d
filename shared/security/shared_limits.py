"""Rate limits that all processes with the same Redis server count together, by the library `limits`.

Each process also counts alone (`shared.security.quotas`). While the server doesn't answer, only these counts hold.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import Counter
from collections.abc import Coroutine, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from prometheus_client import CollectorRegistry, Gauge

from shared.caller import Caller
from shared.config import ConfigError
from shared.errors import Overloaded
from shared.security.quotas import TOO_MANY_REQUESTS, TOO_MANY_TOKENS

if TYPE_CHECKING:
    from limits import RateLimitItem

log = logging.getLogger(__name__)

Answer = TypeVar("Answer")

_ANSWER_SECONDS = 0.25
_PAUSE_SECONDS = 1.0
"""Time between attempts while the server doesn't answer. Only one call waits for each attempt."""
_REPORTED_SECONDS = 900.0
"""Time after the last attempt for which the metric reports a server that does not answer."""
_CHARGE_SECONDS = 0.1
"""How often the tokens of running calls are charged."""
_WINDOW_SECONDS, _LONGEST_WINDOW_SECONDS = 10, 10**8
_SECOND_IS_ENOUGH = 10.0
"""From this rate on, requests are counted by the second: rounding changes the limit by a tenth at most."""


class _Limit(NamedTuple):
    item: RateLimitItem
    key: str
    error: str


class SharedLimits:
    """Counts requests and tokens of callers and tenants in fixed windows in Redis."""

    def __init__(self, address: str, metrics: CollectorRegistry | None = None) -> None:
        """`address`: redis://... or rediss://... Raises ConfigError for an invalid one, or without the library."""
        try:
            from limits import RateLimitItemPerSecond
            from limits.aio.storage import RedisStorage
            from limits.aio.strategies import FixedWindowRateLimiter

            self._storage = RedisStorage(
                f"async+{address}", wrap_exceptions=True, implementation="redispy", key_prefix="softprompt"
            )
        except Exception as error:  # the library's for a missing client, the client's for an address
            if isinstance(error, ValueError):
                raise ConfigError(
                    "LIMITS_STORAGE is not the address of a Redis server"
                ) from None  # may have a password
            raise ConfigError("LIMITS_STORAGE needs the extra: pip install 'softprompt[limits]'") from error
        self._limiter, self._item = FixedWindowRateLimiter(self._storage), RateLimitItemPerSecond
        self._is_available, self._next_attempt = True, 0.0
        self._uncharged: Counter[_Limit] = Counter()
        self._charging: asyncio.Task[None] | None = None
        about = "1 while shared limits are counted, 0 while their storage does not answer and processes count alone."
        Gauge("softprompt_shared_limits_available", about, registry=metrics).set_function(self._counts_together)

    def _counts_together(self) -> bool:
        """Also without calls: only they ask the server again."""
        return self._is_available or time.monotonic() > self._next_attempt + _REPORTED_SECONDS

    async def begin(self, caller: Caller) -> None:
        """Count a request of the caller and its tenant. Raises Overloaded if one has reached a limit."""
        requests = list(self._limits(caller, tokens=False))
        # All are tested before one is counted: a refused request uses up no other limit.
        for limit in (*self._limits(caller, tokens=True), *requests):
            if await self._answer(self._limiter.test(limit.item, limit.key)) is False:
                raise await self._exceeded(limit, caller)
        for limit in requests:  # other processes may have counted since the test
            if await self._answer(self._limiter.hit(limit.item, limit.key)) is False:
                raise await self._exceeded(limit, caller)

    def charge_tokens(self, caller: Caller, num_tokens: int) -> None:
        """Charge tokens to the caller and its tenant, a moment later. The current window may be overdrawn."""
        self._uncharged.update(dict.fromkeys(self._limits(caller, tokens=True), num_tokens))
        if self._uncharged and self._charging is None:
            self._charging = asyncio.create_task(self._charge())

    async def close(self) -> None:
        """Charge what is left and disconnect."""
        if self._charging is not None:
            await self._charging
        await self._storage.bridge.get_connection().aclose()

    async def _charge(self) -> None:
        while self._uncharged:
            await asyncio.sleep(_CHARGE_SECONDS)
            charges, self._uncharged = self._uncharged, Counter()
            for limit, num_tokens in charges.items():
                await self._answer(self._limiter.hit(limit.item, limit.key, cost=num_tokens))
        self._charging = None

    def _limits(self, caller: Caller, tokens: bool) -> Iterator[_Limit]:
        tenant = caller.tenant
        for subject, key, limits in (
            ("you", f"caller/{caller.name}", caller.limits),
            ("your tenant", f"tenant/{tenant.name}", tenant.limits),
        ):
            rate = limits.tokens_per_second if tokens else limits.requests_per_second
            if rate is not None:
                is_fast = rate >= _SECOND_IS_ENOUGH and not tokens
                window = 1 if is_fast else math.ceil(min(max(_WINDOW_SECONDS, 1 / rate), _LONGEST_WINDOW_SECONDS))
                error = (TOO_MANY_TOKENS if tokens else TOO_MANY_REQUESTS).format(subject=subject, rate=rate)
                yield _Limit(
                    self._item(max(1, round(rate * window)), window, "tokens" if tokens else "requests"), key, error
                )

    async def _exceeded(self, limit: _Limit, caller: Caller) -> Overloaded:
        stats = await self._answer(self._limiter.get_window_stats(limit.item, limit.key))
        wait = 1.0 if stats is None else max(1.0, stats.reset_time - time.time())
        return Overloaded(limit.error, retry_after_seconds=wait, caller=caller.name)

    async def _answer(self, asked: Coroutine[Any, Any, Answer]) -> Answer | None:
        """What the server answers; None if it doesn't."""
        now = time.monotonic()
        if not self._is_available:
            if now < self._next_attempt:
                asked.close()
                return None
            self._next_attempt = now + _PAUSE_SECONDS
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                answer = await asked
        except Exception as error:  # such as a wrong password: no fault of the storage ends a call
            if self._is_available:
                log.error("the storage of shared limits does not answer; each process counts alone: %s", error)
            self._is_available, self._next_attempt = False, now + _PAUSE_SECONDS
            return None
        if not self._is_available:
            log.info("the storage of shared limits answers again")
        self._is_available = True
        return answer
