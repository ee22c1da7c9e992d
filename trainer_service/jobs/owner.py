"""The caller and the tenant that a job belongs to."""

from __future__ import annotations

from dataclasses import dataclass, field

from shared.caller import Caller, Tenant


@dataclass(frozen=True)
class JobOwner:
    """The caller's name, its tenant, and its limit of jobs that have not ended (None: the service's limit)."""

    caller: str = ""
    tenant: Tenant = field(default_factory=lambda: Tenant(""))
    max_active: int | None = None

    @classmethod
    def of(cls, caller: Caller) -> JobOwner:
        """The owner of jobs that this caller creates."""
        return cls(caller.name, caller.tenant, caller.limits.active_jobs)


NO_OWNER = JobOwner()
"""The owner of jobs that tests and tools create without a caller."""
