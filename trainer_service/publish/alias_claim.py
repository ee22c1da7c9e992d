"""Whether a finished job may still move its alias: not if a person, or a job created later, has moved the alias since
the job was created. Pure.

A rollback or a canary that began while the job trained is a newer decision than the job, so the job publishes its
version without moving the alias. A move by an earlier job is not: of two jobs, the alias ends at the version of the one
created later, whichever finishes first.
"""

from __future__ import annotations

from shared.errors import Conflict
from shared.store.index import Alias, PromptRecord, StoreIndex
from trainer_service.jobs.model import JOB_PREFIX, Job


def alias_revision(index: StoreIndex, prompt: str, alias: str) -> int | None:
    """The revision of the alias's latest move, which a new job records: 0 if the alias doesn't exist, None if `alias`
    is empty.
    """
    if not alias:
        return None
    found = _find(index, prompt, alias)
    return found.revision if found else 0


def check_claim(index: StoreIndex, job: Job) -> None:
    """Raises Conflict with the reason if the job must not move its alias."""
    prompt, alias, recorded = job.spec.prompt, job.spec.publish.moved_alias, job.effective.alias_revision
    if recorded is None:
        return
    found = _find(index, prompt, alias)
    if (found.revision if found else 0) == recorded:
        return
    if found is None:
        raise Conflict(f"{prompt}@{alias} was removed after this job was created")
    mover = _moving_job(index.prompt(prompt), found)
    if not mover:
        raise Conflict(f"{prompt}@{alias} was moved to {found} by hand after this job was created", current=str(found))
    if mover > job.name:  # ids sort by the time of creation
        raise Conflict(
            f"{prompt}@{alias} was moved to {found} by {mover}, which was created after this job", current=str(found)
        )


def _find(index: StoreIndex, prompt: str, alias: str) -> Alias | None:
    record = index.prompts.get(prompt)
    return record.aliases.get(alias) if record else None


def _moving_job(record: PromptRecord, alias: Alias) -> str:
    """Name of the job whose publication moved the alias last, in the same commit; empty if it was not a job."""
    versions = [record.versions.get(target.version) for target in alias.targets]
    jobs = [version.job for version in versions if version is not None and version.revision == alias.revision]
    return jobs[0] if len(versions) == 1 and jobs and jobs[0].startswith(JOB_PREFIX) else ""
