"""What runs at the moment, for a drain to wait on."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from shared.errors import Unavailable


@dataclass
class CallCounter:
    """Calls that drain waits for: all but health checks, reflection and endless watches."""

    count: int = 0
    health_watches: int = 0
    """Clients that will hear by health that they are to leave."""
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    over: asyncio.Event = field(default_factory=asyncio.Event)
    """Nothing that a drain waits for runs any more: what would run for ever ends too."""

    def __post_init__(self) -> None:
        self.idle.set()

    @contextmanager
    def counted(self) -> Iterator[None]:
        self.count += 1
        self.idle.clear()
        try:
            yield
        finally:
            self.count -= 1
            if self.count == 0:
                self.idle.set()

    async def until_over(self, work: Coroutine[Any, Any, None]) -> None:
        """Do the work of a call that nobody waits for. Raises Unavailable when everything else is over."""
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
        self.health_watches += 1
        try:
            yield
        finally:
            self.health_watches -= 1
