"""What runs at the moment, for a drain to wait on."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class CallCounter:
    """Calls that drain waits for: all but health checks, reflection and endless watches."""

    count: int = 0
    health_watches: int = 0
    """Clients that will hear by health that they are to leave."""
    idle: asyncio.Event = field(default_factory=asyncio.Event)

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

    @contextmanager
    def watching_health(self) -> Iterator[None]:
        self.health_watches += 1
        try:
            yield
        finally:
            self.health_watches -= 1
