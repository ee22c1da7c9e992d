"""Counts running calls, so that a draining server can wait for them."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from shared.errors import Unavailable


@dataclass
class CallCounter:
    """Counts the calls that a drain waits for: all but health checks, reflection and endless watches."""

    count: int = 0
    health_watches: int = 0
    """Number of health watches; their clients learn from the status that they should leave."""
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    """Set while no counted call runs."""
    over: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the drain is over; calls that are not counted then end, too."""

    def __post_init__(self) -> None:
        self.idle.set()

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count a call inside the `with` block."""
        self.count += 1
        self.idle.clear()
        try:
            yield
        finally:
            self.count -= 1
            if self.count == 0:
                self.idle.set()

    async def until_over(self, work: Coroutine[Any, Any, None]) -> None:
        """Run the work of a call that is not counted. Cancels it and raises Unavailable when `over` is set."""
        working, ending = asyncio.ensure_future(work), asyncio.ensure_future(self.over.wait())
        try:
            await asyncio.wait({working, ending}, return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                raise Unavailable("the service is ending")
            working.result()
        finally:
            ending.cancel()
            if not working.done():
                working.cancel()
                await asyncio.wait({working})

    @contextmanager
    def watching_health(self) -> Iterator[None]:
        """Count a health watch inside the `with` block."""
        self.health_watches += 1
        try:
            yield
        finally:
            self.health_watches -= 1
