"""What routing has to know: which replicas are live, and which base model a prompt reference means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Replica:
    """A live replica, as its record describes it. The record may be wrong: replicas check what they are asked."""

    id: str
    address: str
    """`host:port`."""
    base_model: str
    fingerprint: str
    waiting: int = 0
    """Requests in its queue at its last heartbeat."""


@dataclass(frozen=True)
class Target:
    """The version that a reference means now."""

    version: str
    """Resource name."""
    fingerprint: str
    """Of the base model that it was tuned for."""
    base_model: str = ""
    """Id of that base model where it was tuned."""


class Directory(Protocol):
    """A source of replicas and prompts. Its methods do no I/O, except the last two."""

    @property
    def replicas(self) -> Sequence[Replica]:
        """The live replicas that have an address."""

    def resolve(self, reference: str, routing_key: str) -> Target | None:
        """The version that a well-formed reference means; None for an unknown or malformed one."""

    def is_split(self, reference: str) -> bool:
        """Whether the reference is an alias of several versions."""

    def base_model_of(self, fingerprint: str) -> str:
        """Id of the base model with this fingerprint, by the prompts that were tuned for it; empty if unknown."""

    async def catch_up(self) -> None:
        """Read the newest prompts now. Limited in time; never raises."""

    async def find_replicas(self) -> None:
        """Read the newest replicas now. Limited in time; never raises."""
