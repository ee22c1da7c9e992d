"""Adds published segments to the database, and says which budgets are used up, every few seconds.

All trainers may do this at the same time.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from sqlalchemy.exc import DataError

from shared.caller import Tenant
from shared.errors import DamagedBlob, SoftPromptError
from shared.process.call_pool import CallPool
from shared.store.base import ObjectBackend
from shared.store.usage import HOUR_SECONDS, SegmentId, UsageSegments, write_used_up
from shared.values.usage import BudgetStatus
from trainer_service.usage.budgets import Budgets, used_up
from trainer_service.usage.ledger import UsageLedger

log = logging.getLogger(__name__)

_REMOVE_SECONDS = 3600.0
_FOLD_SECONDS = 20.0
"""A round ends after this time, so that a long backlog doesn't delay the judgement of budgets."""


class UsageObserver(Protocol):
    """Called on the event loop."""

    def usage_folded(self, folded: int, refused: int, failed: int) -> None:
        """A round has added and refused segments, and could not read or remove others."""

    def set_budgets(self, statuses: Sequence[BudgetStatus]) -> None:
        """The state of all budgets."""


@dataclass
class Folded:
    """What a round did with the segments."""

    added: int = 0
    refused: int = 0
    failed: int = 0
    """Segments that the store could not read or remove; the next round tries them again."""
    problem: str = ""
    """The first failure."""


class UsageFolding:
    """Adds segments. Blocks."""

    def __init__(self, ledger: UsageLedger, segments: UsageSegments) -> None:
        self._ledger, self._segments = ledger, segments

    def fold(self, seconds: float = _FOLD_SECONDS) -> Folded:
        """Adds the segments that fit into this time, and removes them. One that fails delays only its own journal.
        Raises Unavailable if the store can't list them or the database is unavailable at the start.
        """
        folded, blocked, end = Folded(), set[str](), time.monotonic() + seconds
        numbers, salt = dict(self._ledger.next_numbers()), random.random()
        # The journals' order is random, so that slow failures don't use up each round before the others' turn.
        for segment in sorted(self._segments.all(), key=lambda segment: (hash((salt, segment.life)), segment)):
            if segment.life in blocked:
                continue
            try:
                self._fold(segment, numbers, folded)
            except SoftPromptError as error:
                if segment.number >= numbers.get(segment.life, 1):
                    blocked.add(segment.life)  # once a later one is added, this one counts as added
                folded.failed += 1
                folded.problem = min(filter(None, (folded.problem, f"{segment.key}: {error.message}")))
            if time.monotonic() > end:
                break
        return folded

    def _fold(self, segment: SegmentId, numbers: dict[str, int], folded: Folded) -> None:
        if segment.number < numbers.get(segment.life, 0):
            self._segments.remove(segment)  # its trainer was killed before it removed it
            return
        expected = SegmentId(segment.life, numbers.get(segment.life, 1))
        if segment != expected and self._segments.exists(expected):
            return  # the list was read while it was published: the next round adds both
        try:
            found = self._segments.read(segment)
            if found is not None:  # else another trainer has it
                if found.unread:
                    folded.refused += self._refuse(segment, found.problem, found.unread)
                folded.added += self._ledger.fold(segment, found.records)
        except DamagedBlob as error:
            folded.refused += self._refuse(segment, error.message)
            self._ledger.fold(segment, ())
        except DataError as error:
            folded.refused += self._refuse(segment, f"the database refuses it: {type(error.orig).__name__}")
            self._ledger.fold(segment, ())
        numbers[segment.life] = segment.number + 1
        self._segments.remove(segment)

    def _refuse(self, segment: SegmentId, reason: str, unread: bytes = b"") -> bool:
        """Keeps these lines of the segment elsewhere, by default all, so that it delays no other."""
        log.error("a segment of usage is refused", extra={"fields": {"segment": segment.key, "why": reason}})
        self._segments.refuse(segment, unread)
        return True


class UsageRounds:
    """Runs rounds until `run` is cancelled."""

    def __init__(
        self,
        ledger: UsageLedger,
        budgets: Budgets,
        backend: ObjectBackend,
        pool: CallPool,
        tenants: Callable[[], Mapping[str, Tenant]],
        observer: UsageObserver,
        seconds: float,
        keep_days: float,
        on_used_up: Callable[[Sequence[BudgetStatus]], None] = lambda statuses: None,
    ) -> None:
        """`on_used_up` gets the used-up budgets of each round, in the pool's thread; `keep_days` 0: forever."""
        self._ledger, self._budgets, self._backend, self._pool = ledger, budgets, backend, pool
        self._tenants, self._observer, self._on_used_up = tenants, observer, on_used_up
        self._folding = UsageFolding(ledger, UsageSegments(backend))
        self._seconds, self._keep_days = seconds, keep_days

    async def run(self) -> None:
        """Does rounds until cancelled, despite failures."""
        problem, removed_at = "", 0.0
        while True:
            try:
                found = await self.round()
                if found and found != problem:
                    log.warning("usage is not up to date: %s", found)
                if self._keep_days and time.monotonic() - removed_at > _REMOVE_SECONDS:
                    removed_at = time.monotonic()
                    oldest = time.time() - self._keep_days * 86_400
                    await self._pool.call(self._ledger.remove_before, int(oldest) // HOUR_SECONDS * HOUR_SECONDS)
                problem = found
            except SoftPromptError as error:
                if error.message != problem:
                    log.warning("usage is not up to date: %s", error.message)
                problem = error.message
            except Exception:
                log.exception("a round of usage failed with an unexpected error")
            await asyncio.sleep(self._seconds * random.uniform(0.8, 1.2))

    async def round(self) -> str:
        """Does one round; says why segments could not be added. Budgets are judged in any case. Raises Unavailable."""
        try:
            folded = await self._pool.call(self._folding.fold, min(_FOLD_SECONDS, self._pool.timeout_seconds / 2))
            self._observer.usage_folded(folded.added, folded.refused, folded.failed)
            problem = folded.problem
        except SoftPromptError as error:
            problem = error.message
        tenants = tuple(self._tenants().values())
        self._observer.set_budgets(await self._pool.call(self._judge, tenants))
        return problem

    def _judge(self, tenants: Sequence[Tenant]) -> tuple[BudgetStatus, ...]:
        statuses = self._budgets.statuses(tenants)
        write_used_up(self._backend, used_up(statuses))
        self._on_used_up([status for status in statuses if status.is_used_up])
        return statuses
