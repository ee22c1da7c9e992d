"""Usage by hour, summed by what the request names, and budgets."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum


class UsageDimension(StrEnum):
    """By what usage is summed."""

    HOUR = "HOUR"
    TENANT = "TENANT"
    CALLER = "CALLER"
    PROMPT = "PROMPT"
    VERSION = "VERSION"
    BASE_MODEL = "BASE_MODEL"


@dataclass(frozen=True)
class UsageRow:
    """Sums of the usage with these values. Fields by which it was not summed are empty."""

    hour: datetime | None = None
    """Begin of the hour (UTC)."""
    tenant: str = ""
    caller: str = ""
    prompt: str = ""
    """Also empty for the bare model."""
    version: int = 0
    """Number of the version; 0 for the bare model and for jobs that published none."""
    base_model: str = ""
    requests: int = 0
    """Completions and scores that ended, however they ended."""
    input_tokens: int = 0
    virtual_tokens: int = 0
    cached_tokens: int = 0
    """Part of the input tokens."""
    generated_tokens: int = 0
    jobs: int = 0
    """Tuning jobs that ended."""
    worker_seconds: float = 0.0
    """Time of these jobs on workers."""
    stored_bytes: int = 0
    """Bytes of the versions that these jobs published."""


@dataclass(frozen=True)
class BudgetStatus:
    """How much of a tenant's budget is used in its current period."""

    tenant: str
    name: str
    of: str
    """What it counts, for example "tokens"."""
    limit: float
    used: float
    per: str
    """hour, day or month (UTC)."""
    is_hard: bool
    """Whether requests and jobs are refused when it is used up."""
    reset_time: datetime | None

    @property
    def is_used_up(self) -> bool:
        """Whether the limit is reached."""
        return self.used >= self.limit


@dataclass(frozen=True)
class UsagePage:
    """A page of sums."""

    usage: tuple[UsageRow, ...]
    next_page_token: str = ""
    budgets: tuple[BudgetStatus, ...] = ()
    """On the first page: those of the tenants that the caller may see."""


@dataclass(frozen=True)
class UsageQuery:
    """A request for usage."""

    start_time: datetime | None = None
    end_time: datetime | None = None
    by: tuple[UsageDimension, ...] = ()
    tenant: str = ""
    page_token: str = ""


@dataclass(frozen=True)
class UsageFilter:
    """Which usage to sum, and by what. Hours are seconds since the epoch."""

    first_hour: int
    end_hour: int
    by: tuple[UsageDimension, ...]
    tenant: str | None = None
    """None: all tenants."""
    visible_to: tuple[str, ...] = field(default=("*",))
    """Patterns of the prompts that the caller may see."""
