"""A turn of a conversation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Message:
    """One turn of a conversation: `role` is "system", "user" or "assistant"."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}
    role: str
    content: str
