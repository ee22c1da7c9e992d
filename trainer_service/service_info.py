"""Information about this trainer for callers: base models, limits, default hyperparameters."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version

from shared.values import service as values
from shared.values.template import Template
from trainer_service.base_models import BaseModels
from trainer_service.datasets.upload import UploadLimits
from trainer_service.training.recipe.defaults import fill
from trainer_service.training.spec import FilledHyperparameters, Hyperparameters, TaskKind

_EXAMPLES_OF_A_SMALL_JOB = 200


@dataclass(frozen=True)
class RequestLimits:
    """Limits of requests, besides those of datasets."""

    max_virtual_tokens: int
    max_queued_jobs: int
    max_runtime_seconds: float
    max_positions: int = 0
    """Longest sequence that replicas serve; 0: the base model's context."""


@dataclass(frozen=True)
class ServiceInfo:
    """The answer to a request for information about this trainer."""

    models: BaseModels
    limits: RequestLimits
    upload_limits: UploadLimits

    def shown(self, *, queued: int, running: int, num_workers: int) -> values.ServiceInfo:
        """The information, with the service's load in jobs."""
        base_models, longest = self.models.infos, self.limits.max_virtual_tokens
        filled: FilledHyperparameters | None = None
        if base_models:  # the recipe's choice for a small generation job of the default model
            task, model, num_examples = TaskKind.GENERATION, base_models[0], _EXAMPLES_OF_A_SMALL_JOB
            filled = fill(Hyperparameters(), task, num_examples, model, Template(), max_virtual_tokens=longest)
        return values.ServiceInfo(
            software_version=version("softprompt"),
            base_models=base_models,
            limits=values.TuningLimits(**vars(self.limits), **vars(self.upload_limits)),
            default_hyperparameters=None if filled is None else filled.as_chosen,
            queued_jobs=queued,
            running_jobs=running,
            num_workers=num_workers,
            unavailable_base_models=tuple(
                values.UnavailableBaseModel(id, reason) for id, reason in sorted(self.models.unavailable.items())
            ),
        )
