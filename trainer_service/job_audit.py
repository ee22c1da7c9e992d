"""Records the end of each job in the audit log. Most jobs end without a call: by success, an error, their deadline or
the runtime limit.
"""

from __future__ import annotations

from shared.security import audit
from trainer_service.jobs.model import Job


def audit_end(job: Job) -> None:
    """Writes a line about an ended job."""
    error = {"error": job.error.code} if job.error else {}
    ended = {"caller": job.caller, "prompt": job.spec.prompt, "job": job.id, "state": job.state.value, **error}
    audit.record("end", "OK", ended)
