"""Retraining on another base model, asynchronously; and the blocking forms of these methods."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from shared.errors import (
    AlreadyExists,
    Conflict,
    InvalidInput,
    NotFound,
    Overloaded,
    PermissionDenied,
    PreconditionFailed,
    SoftPromptError,
)
from shared.values.base_model import BaseModelInfo
from shared.values.enums import JobState
from softprompt.client.prompts import PromptMethods, SyncPromptMethods
from softprompt.client.retraining_plan import (
    PlannedRetraining,
    RetrainingPlan,
    aliased_versions,
    annotations_of,
    comparable,
    metric_of,
    request_id,
    retraining_spec,
    why_not_comparable,
)
from softprompt.client.sync_methods import blocking
from softprompt.client.tuning import SyncTuningMethods, TuningMethods
from softprompt.types.jobs import TuningJob
from softprompt.types.prompts import PromptVersion
from softprompt.types.report import JobReport

_AT_ONCE = 8
"""Versions that are looked at at the same time."""
_NO_EXAMPLES = (
    "your tenant has none of its examples (they may be another tenant's): train it again from a file of examples"
)
_REFUSALS = (AlreadyExists, Conflict, InvalidInput, NotFound, Overloaded, PermissionDenied, PreconditionFailed)
"""Errors of one version, after which the others go on."""


class RetrainingMethods(TuningMethods, PromptMethods):
    """The part of AsyncClient that moves prompts to another base model."""

    async def plan_retraining(
        self, base_model: str, prompts: Sequence[str] = (), *, keep_aliases: bool = False
    ) -> RetrainingPlan:
        """What `retrain` would do: a job for each version that an alias names, of all visible prompts or of `prompts`,
        on `base_model` (id or fingerprint). Creates nothing. Each job must beat the version that it replaces, by
        held-out answers that are kept of it; with too few, the version is refused. With `keep_aliases`, the jobs must
        beat the bare model instead and move no alias. Raises NotFound for the base model or a prompt.
        """
        model = await self._new_model(base_model)
        chosen = [await self.get_prompt(name) for name in prompts] if prompts else await self.list_prompts()
        named = [(prompt.name.removeprefix("prompts/"), prompt.aliases) for prompt in chosen]
        items = [item for prompt, aliases in named for item in aliased_versions(prompt, aliases)]
        free = asyncio.Semaphore(_AT_ONCE)

        async def planned(item: PlannedRetraining) -> PlannedRetraining | None:
            async with free:
                return await self._planned(item, model, keep_aliases)

        found = await asyncio.gather(*map(planned, items))
        made = tuple(item for item in found if item is not None)
        return RetrainingPlan(model, await self._num_replicas(model), made, len(found) - len(made))

    async def retrain(self, plan: RetrainingPlan) -> list[PlannedRetraining]:
        """Create the jobs of a plan; returns it with the jobs, and with the reason where one was refused.

        A repeated call after an interruption, or one of another caller at the same time, gets the jobs of the first.
        Raises Unavailable, DeadlineExceeded.
        """
        made = []
        for item in plan.prompts:
            if item.is_new and item.spec is not None:
                try:
                    job = await self.create_job(item.spec, request_id=item.request_id, shared_request_id=True)
                    item = replace(item, job=job)
                except _REFUSALS as error:
                    item = replace(item, refused=error.message)
            made.append(item)
        return made

    async def _new_model(self, base_model: str) -> BaseModelInfo:
        info = await self.service_info()
        for model in info.base_models:
            if base_model in (model.id, model.fingerprint):
                return model
        for missing in info.unavailable_base_models:
            if missing.id == base_model:
                raise PreconditionFailed(f"base model {base_model!r} is not available: {missing.reason}")
        known = ", ".join(model.id for model in info.base_models) or "none"
        raise NotFound("base model", base_model, f"the trainer's base models: {known}")

    async def _planned(
        self, item: PlannedRetraining, model: BaseModelInfo, keep_aliases: bool
    ) -> PlannedRetraining | None:
        """The item with everything that is known of it; None if its version belongs to the new base model."""
        try:
            version = await self.get_version(item.version)
            item = replace(item, base_model=version.base_model.id if version.base_model is not None else "")
            if version.base_model is not None and version.base_model.fingerprint == model.fingerprint:
                return None
            if keep_aliases:
                item = replace(item, alias="", notes=())
            return item if item.refused else await self._checked(item, version, model)
        except _REFUSALS as error:
            gone = isinstance(error, NotFound) and error.kind == "dataset"
            return replace(item, refused=error.message, data_kept=False if gone else item.data_kept)

    async def _checked(
        self, item: PlannedRetraining, version: PromptVersion, model: BaseModelInfo
    ) -> PlannedRetraining:
        earlier = await self.list_jobs(prompt=item.prompt, annotations=annotations_of(version, model))
        earlier = [job for job in earlier if job.spec is not None and job.spec.publish.moved_alias == item.alias]
        standing = next((job for job in earlier if job.state not in (JobState.FAILED, JobState.CANCELLED)), None)
        if standing is not None:
            return replace(item, job=standing)
        job = await self._found_job(version.job)
        metric = metric_of(version, job)
        num_comparable = comparable(metric, await self._found_report(version.job))
        why = why_not_comparable(metric, num_comparable) if item.alias else ""
        spec, changes = retraining_spec(version, job, model, item.alias)
        notes = (*item.notes, *changes)
        item = replace(item, num_comparable=num_comparable, metric=metric.value.lower(), notes=notes)
        try:
            check = await self.validate_job(spec)
        except NotFound as error:
            if error.kind != "dataset":
                raise
            return replace(item, data_kept=False, refused=_NO_EXAMPLES)
        statistics = check.job.dataset_statistics
        return replace(
            item,
            data_kept=True,
            num_examples=None if statistics is None else statistics.num_train + statistics.num_validation,
            estimated_seconds=check.estimated_seconds,
            refused=f"it can't be compared with the old version: {why}" if why else "",
            spec=spec,
            request_id=request_id(version, model, item.alias, earlier),
        )

    async def _found_job(self, name: str) -> TuningJob | None:
        """The job; None if it is deleted or was one of another trainer."""
        try:
            return await self.get_job(name) if name else None
        except (NotFound, InvalidInput):
            return None

    async def _found_report(self, job: str) -> JobReport | None:
        try:
            return await self.job_report(job) if job else None
        except (NotFound, InvalidInput):
            return None

    async def _num_replicas(self, model: BaseModelInfo) -> int | None:
        """Live replicas of a base model."""
        try:
            replicas = await self.list_replicas()
        except SoftPromptError:  # shown beside the plan, which does not depend on it
            return None
        return sum(replica.base_model_fingerprint == model.fingerprint for replica in replicas)


class SyncRetrainingMethods(SyncTuningMethods, SyncPromptMethods):
    """The blocking forms of RetrainingMethods."""

    plan_retraining = blocking(RetrainingMethods.plan_retraining)
    retrain = blocking(RetrainingMethods.retrain)
