"""What this trainer tells callers about itself."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version

from shared.base_model import BaseModelInfo
from trainer_service.jobs.dataset_upload import UploadLimits
from trainer_service.training.spec import Hyperparameters


@dataclass(frozen=True)
class TuningLimits:
    """Bounds that requests are checked against, beside those of a dataset."""

    max_virtual_tokens: int
    max_queued_jobs: int
    max_runtime_seconds: float


@dataclass(frozen=True)
class ServiceInfo:
    base_models: tuple[BaseModelInfo, ...]
    limits: TuningLimits
    upload_limits: UploadLimits
    default_hyperparameters: Hyperparameters
    """What the recipe chooses for a small generation job."""
    software_version: str = version("softprompt")
