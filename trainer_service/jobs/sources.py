"""Finds the prompt that a job starts from: a published version, or the best prompt of a job that ended without one."""

from __future__ import annotations

from dataclasses import dataclass

from shared.caller import current_caller
from shared.errors import PreconditionFailed
from shared.names import PromptReference
from shared.store.store import PromptStore
from shared.store.view import visible_index
from shared.values.base_model import BaseModelInfo
from shared.values.enums import PrefixKind
from trainer_service.jobs.model import JOB_NAME
from trainer_service.jobs.store.job_store import JobStore

FIELD = "spec.hyperparameters.init.source"


@dataclass(frozen=True)
class Source:
    """A prompt to start from. `name` is the resource name of a version or a job."""

    name: str
    num_virtual_tokens: int
    kind: PrefixKind
    digest: str = ""
    """Digest of the version's blob; empty for a job."""
    job_id: str = ""
    """Id of the job; empty for a version."""


def names_job(source: str) -> bool:
    """Whether the reference names a job; `Sources.find` then reads the job store, otherwise the prompt store."""
    return JOB_NAME.fullmatch(source) is not None


class Sources:
    """Finds sources among the versions and jobs that the caller may see. Its methods block and are thread-safe."""

    def __init__(self, prompts: PromptStore, jobs: JobStore) -> None:
        self._prompts, self._jobs = prompts, jobs

    def find(self, source: str, model: BaseModelInfo) -> Source:
        """Finds a source by `name`, `name@alias`, `name@7`, a version's resource name, or `tuningJobs/<id>`. Raises
        InvalidInput, NotFound, or PreconditionFailed if the prompt is for another base model or the job keeps no
        prompt.
        """
        job = JOB_NAME.fullmatch(source)
        return self._of_job(job[1], model) if job else self._of_version(source, model)

    def _of_version(self, source: str, model: BaseModelInfo) -> Source:
        reference = PromptReference.parse_any(source, FIELD)
        record = visible_index(self._prompts.refresh(), current_caller()).resolve(reference)
        _check_fingerprint(record.name, record.summary.base_model_fingerprint, model)
        return Source(
            record.name, record.summary.num_virtual_tokens, _kind(record.name, record.summary.kind), record.digest
        )

    def _of_job(self, job_id: str, model: BaseModelInfo) -> Source:
        job = self._jobs.get(job_id, current_caller().prompts)
        if not job.keeps_best_prompt:
            version = job.result.version if job.result is not None else ""
            advice = f"start from its version {version}" if version else "it must have ended after its first checkpoint"
            raise PreconditionFailed(
                f"{job.name} is {job.state} and keeps no prompt: {advice}", field=FIELD, state=job.state.value
            )
        _check_fingerprint(job.name, job.effective.base_model.fingerprint, model)
        trained = job.effective.training.hyperparameters
        return Source(job.name, trained.num_virtual_tokens, trained.kind, job_id=job.id)


def _kind(name: str, kind: str) -> PrefixKind:
    if kind not in [known.value for known in PrefixKind]:
        raise PreconditionFailed(f"{name} is of kind {kind[:40]!r}, which this release doesn't know", field=FIELD)
    return PrefixKind(kind)


def _check_fingerprint(name: str, fingerprint: str, model: BaseModelInfo) -> None:
    if fingerprint != model.fingerprint:
        raise PreconditionFailed(
            f"{name} was trained for a base model with fingerprint {fingerprint}; {model.id} has {model.fingerprint}",
            field=FIELD,
            source_fingerprint=fingerprint,
            base_model_fingerprint=model.fingerprint,
        )
