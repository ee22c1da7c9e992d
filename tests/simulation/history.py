"""What clients saw and did, in order, as plain lines: the input of the checker, and what a replay must repeat."""

from __future__ import annotations

import asyncio
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Event:
    """Something that a client did or saw; `time` is virtual."""

    time: float
    kind: str
    facts: dict[str, Any]

    def __getattr__(self, name: str) -> Any:
        try:
            return self.facts[name]
        except KeyError:
            raise AttributeError(name) from None

    def __str__(self) -> str:
        return f"{self.time:9.3f} {self.kind:10} {json.dumps(self.facts)}"


@dataclass
class History:
    """The events of one life."""

    events: list[Event] = field(default_factory=list)

    def add(self, kind: str, **facts: Any) -> Event:
        """Records an event now."""
        event = Event(asyncio.get_running_loop().time(), kind, facts)
        self.events.append(event)
        return event

    def of(self, *kinds: str) -> list[Event]:
        """The events of some kinds, in order."""
        return [event for event in self.events if event.kind in kinds]

    @property
    def digest(self) -> str:
        """Equal for equal histories."""
        return hashlib.sha256("\n".join(map(str, self.events)).encode()).hexdigest()
