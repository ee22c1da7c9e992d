"""For whom a job is made."""

from __future__ import annotations

from dataclasses import dataclass, field

from shared.caller import Caller, Tenant


@dataclass(frozen=True)
class JobOwner:
    """The caller by name, the caller's tenant, and the caller's own limit of jobs that have not ended (None: the
    service's).
    """

    caller: str = ""
    tenant: Tenant = field(default_factory=lambda: Tenant(""))
    max_active: int | None = None

    @classmethod
    def of(cls, caller: Caller) -> JobOwner:
        return cls(caller.name, caller.tenant, caller.limits.active_jobs)


NO_OWNER = JobOwner()
"""Where no caller asks: jobs that the service's own tests and tools make."""
