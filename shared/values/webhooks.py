"""The trainer's webhooks and the outcomes of their deliveries."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True)
class DeadLetter:
    """A delivery whose last attempt failed."""

    event_id: str
    """The `webhook-id` of its requests."""
    event_type: str
    subject: str
    """The job or the prompt that it is about; deliveries of one subject are in order."""
    attempts: int
    error: str
    """Why the last attempt failed."""
    is_dead: bool
    """Whether it will not be retried."""
    create_time: datetime | None


@dataclass(frozen=True)
class Webhook:
    """An endpoint of the trainer's webhooks file. The numbers cover the last 30 days."""

    name: str
    url: str
    """Scheme and host of its URL; the rest may be a secret."""
    event_types: tuple[str, ...]
    prompts: tuple[str, ...]
    """Patterns of the prompts whose events it gets."""
    num_pending: int
    num_delivered: int
    num_dead: int
    dead_letters: tuple[DeadLetter, ...]
    """The newest ones, including those that are still retried."""
