"""What a job may start from: a published version, or the best prompt of a job that ended without one."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Protocol

from shared.caller import current_caller
from shared.errors import PreconditionFailed
from shared.model.base_model import BaseModelInfo
from shared.names import PromptReference, parse_version_name
from shared.store.index import StoreIndex
from shared.store.view import visible_index
from trainer_service.jobs.model import Job

FIELD = "spec.hyperparameters.init.source"
_JOB = re.compile(r"tuningJobs/([0-9a-z]{1,64})")


class PromptIndex(Protocol):
    """What is needed of the prompt store: what there is, up to date."""

    def refresh(self) -> StoreIndex: ...


class Jobs(Protocol):
    def get(self, job_id: str, visible_to: tuple[str, ...]) -> Job:
        """Raises NotFound, also for a job of a prompt that matches none of the patterns."""
        ...


@dataclass(frozen=True)
class Source:
    """`name` is exact: a version's or a job's resource name."""

    name: str
    num_virtual_tokens: int
    digest: str = ""
    """Of the version's blob."""
    job_id: str = ""


def names_job(source: str) -> bool:
    """Whether `Sources.find` looks for it among the jobs; else it asks the prompt store."""
    return _JOB.fullmatch(source) is not None


class Sources:
    """Blocks; thread-safe. A job starts from what its caller may see; the rest does not exist."""

    def __init__(self, prompts: PromptIndex, jobs: Jobs) -> None:
        self._prompts, self._jobs = prompts, jobs

    def find(self, source: str, model: BaseModelInfo) -> Source:
        """`name`, `name@alias`, `name@7`, a version's resource name, or `tuningJobs/<id>`.

        Raises InvalidInput, NotFound, or PreconditionFailed if it is for another base model, or if the job keeps no
        prompt.
        """
        job = _JOB.fullmatch(source)
        return self._of_job(job[1], model) if job else self._of_version(source, model)

    def _of_version(self, source: str, model: BaseModelInfo) -> Source:
        if source.startswith("prompts/"):
            prompt, version = parse_version_name(source, FIELD)
            reference = PromptReference(prompt, None, version)
        else:
            reference = PromptReference.parse(source, FIELD)
        record = visible_index(self._prompts.refresh(), current_caller()).resolve(reference)
        _check_fingerprint(record.name, record.summary.base_model_fingerprint, model)
        return Source(record.name, record.summary.num_virtual_tokens, digest=record.digest)

    def _of_job(self, job_id: str, model: BaseModelInfo) -> Source:
        job = self._jobs.get(job_id, current_caller().prompts)
        if not job.keeps_best_prompt:
            version = job.result.version if job.result is not None else ""
            advice = (
                f"start from its version {version}"
                if version
                else "it must have ended, and have been trained for a while"
            )
            raise PreconditionFailed(
                f"{job.name} is {job.state} and keeps no prompt: {advice}", field=FIELD, state=job.state.value
            )
        _check_fingerprint(job.name, job.effective.base_model.fingerprint, model)
        return Source(job.name, job.effective.training.hyperparameters.num_virtual_tokens, job_id=job.id)


def _check_fingerprint(name: str, theirs: str, model: BaseModelInfo) -> None:
    if theirs != model.fingerprint:
        raise PreconditionFailed(
            f"{name} was trained for a base model with fingerprint {theirs}; {model.id} has {model.fingerprint}",
            field=FIELD,
            source_fingerprint=theirs,
            base_model_fingerprint=model.fingerprint,
        )
