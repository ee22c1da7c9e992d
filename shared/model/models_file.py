"""The models file: the base models of a deployment, and the resources that each one gets.

Trainer, replicas and router read it, and `softprompt models manifests` makes Kubernetes objects of it. It is JSON, and
reloaded when it changes:

{"models": [{"id": "qwen3-8b", "source": "/models/qwen3-8b", "dtype": "bfloat16",
             "workers": {"least": 0, "most": 4, "num_gpus": 0.5, "num_cpus": 4, "memory_bytes": 32000000000,
                         "accelerator_type": "H100", "ray_resources": {"nvme": 1},
                         "ray_labels": {"market-type": "spot"}, "launch_seconds": 1800},
             "replicas": {"least": 0, "most": 4, "num_gpus": 1, "num_cpus": 4, "memory_bytes": 32000000000,
                          "node_labels": {"gpu": "h100"}, "launch_seconds": 600,
                          "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]}}]}

All but `id` and `source` may be left out: the settings of the process then hold.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from shared.kernels.formats import Weights
from shared.model.options import DType
from shared.security.json_file import NewestContent, read_json
from shared.security.watched_file import WatchedFile

_LABEL_VALUE = r"([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?"
_LABEL_KEY = r"([a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?"
_LabelKey = Annotated[str, Field(pattern=rf"^{_LABEL_KEY}$")]
_LabelValue = Annotated[str, Field(pattern=rf"^{_LABEL_VALUE}$")]
_SelectorValue = Annotated[str, Field(pattern=rf"^!?({_LABEL_VALUE}|in\([A-Za-z0-9._,-]+\))$")]
"""A value of Ray's label selectors: V, !V, in(V,W) or !in(V,W)."""
_Amount = Annotated[float, Field(gt=0, le=1_000_000, allow_inf_nan=False)]


def _check_limits(least: int, most: int | None) -> None:
    if most is not None and least > most:
        raise ValueError(f"least: must not be above most, which is {most}")


def _check_amount(value: float) -> None:
    """Ray gives out parts of one, and whole numbers."""
    if value > 1 and value != int(value):
        raise ValueError(f"{value:g} must be at most 1, or whole")


_WHOLE = BeforeValidator(lambda value: int(value) if isinstance(value, float) and value.is_integer() else value)
"""Takes 2.0 and 6.4e+09 for whole numbers: templates of Helm write large ones in this way."""


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)


class Toleration(_Strict):
    """A toleration of a pod, with Kubernetes' names and defaults."""

    key: Annotated[str, Field(pattern=rf"^({_LABEL_KEY})?$")] = ""
    operator: Literal["Equal", "Exists"] = "Equal"
    value: _LabelValue = ""
    effect: Literal["", "NoSchedule", "PreferNoSchedule", "NoExecute"] = ""

    @model_validator(mode="after")
    def _means_something(self) -> Self:
        if self.operator == "Exists" and self.value:
            raise ValueError("value: must be empty for the operator Exists")
        if self.operator == "Equal" and not self.key:
            raise ValueError("key: must be set, unless the operator is Exists")
        return self


class Resources(_Strict):
    """What one process for a base model needs."""

    num_gpus: Annotated[float, Field(ge=0, le=64, allow_inf_nan=False)] | None = None
    """GPUs: 0, a part of one, or a whole number. With several, the layers are spread over them."""
    num_cpus: Annotated[float, Field(gt=0, le=1024, allow_inf_nan=False)] | None = None
    """CPU cores: a part of one, or a whole number. Also the threads of a worker, of which it has at least one."""
    memory_bytes: Annotated[int, _WHOLE, Field(ge=1 << 20, le=1 << 50)] | None = None
    """Memory of the machine, without that of GPUs."""
    node_labels: Mapping[_LabelKey, _LabelValue] = {}
    """Labels that a Kubernetes node must have."""
    tolerations: tuple[Toleration, ...] = ()
    """Taints of Kubernetes nodes that don't matter."""
    launch_seconds: Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)] | None = None
    """Longest time from the launch until the model is loaded."""

    @field_validator("num_gpus", "num_cpus")
    @classmethod
    def _can_be_given(cls, value: float | None) -> float | None:
        if value is not None:
            _check_amount(value)
        return value


class Workers(Resources):
    """The workers that train prompts for a base model."""

    least: Annotated[int, _WHOLE, Field(ge=0, le=1024)] = 0
    """Workers that are kept also without jobs, of all trainers that share a job database."""
    most: Annotated[int, _WHOLE, Field(ge=1, le=1024)] | None = None
    """Most workers at once, of the same trainers; the setting `max_workers` limits all models together."""
    accelerator_type: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,63}$")] | None = None
    """Type of the GPU by Ray's name, such as A100 or H100."""
    ray_resources: Mapping[Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,63}$")], _Amount] = {}
    """Custom resources of Ray that a worker takes."""
    ray_labels: Mapping[_LabelKey, _SelectorValue] = {}
    """Labels that a Ray node must have, as a label selector."""

    @field_validator("ray_resources")
    @classmethod
    def _resources_are_custom(cls, value: Mapping[str, float]) -> Mapping[str, float]:
        for name in ("CPU", "GPU", "memory", "object_store_memory"):
            if name in value:
                raise ValueError(f"{name} is not a custom resource: set num_cpus, num_gpus or memory_bytes")
        for amount in value.values():
            _check_amount(amount)
        return value

    @model_validator(mode="after")
    def _limits_agree(self) -> Self:
        _check_limits(self.least, self.most)
        if self.accelerator_type is not None and self.num_gpus == 0:
            raise ValueError("accelerator_type: contradicts num_gpus, which is 0")
        return self


class Replicas(Resources):
    """The replicas that serve a base model."""

    least: Annotated[int, _WHOLE, Field(ge=0, le=1000)] = 1
    """Replicas that are kept also without requests. With 0, the router holds the first request while one starts."""
    most: Annotated[int, _WHOLE, Field(ge=1, le=1000)] | None = None
    """Most replicas; None: `least`, but at least 1."""

    @field_validator("num_gpus")
    @classmethod
    def _has_one_gpu(cls, value: float | None) -> float | None:
        if value not in (None, 0, 1):
            raise ValueError(f"{value:g} must be 0 or 1: a replica computes on one GPU")
        return value

    @model_validator(mode="after")
    def _limits_agree(self) -> Self:
        _check_limits(self.least, self.most)
        return self


class ModelEntry(_Strict):
    """One base model."""

    id: Annotated[str, Field(pattern=r"^[a-z0-9._-]{1,100}$")]
    source: Annotated[str, Field(min_length=1, max_length=4096)]
    """Model directory or hub id; the same on all machines."""
    dtype: DType | None = None
    """Number format for workers and replicas; see the setting of the same name."""
    weights: Weights | None = None
    """Quantisation of replicas' weights on a CPU; see SOFTPROMPT_INFERENCE_WEIGHTS."""
    workers: Workers = Workers()
    replicas: Replicas = Replicas()

    @field_validator("source")
    @classmethod
    def _fits_a_setting(cls, value: str) -> str:
        if "," in value or not value.isprintable() or value != value.strip():
            raise ValueError("must have no comma, no control character and no space at its ends")
        return value


class _File(_Strict):
    models: Annotated[tuple[ModelEntry, ...], Field(max_length=1000)]

    @field_validator("models")
    @classmethod
    def _ids_differ(cls, value: tuple[ModelEntry, ...]) -> tuple[ModelEntry, ...]:
        ids = [entry.id for entry in value]
        if not ids:
            raise ValueError("must have at least one model")
        if repeated := next((id for id in ids if ids.count(id) > 1), None):
            raise ValueError(f"two models have the id {repeated!r}")
        return value


class ModelsFile:
    """The newest valid content of the file; without a file, no entries. Thread-safe."""

    def __init__(
        self, path: Path | None = None, check: Callable[[Mapping[str, ModelEntry]], None] = lambda entries: None
    ) -> None:
        """`check` raises ConfigError for a content that this process can't use. So does this if the file is invalid."""

        def read(file: WatchedFile) -> Mapping[str, ModelEntry]:
            entries = {entry.id: entry for entry in read_json(file, _File).models}
            check(entries)
            return entries

        self._newest = None if path is None else NewestContent(path, "models", read, len)

    @property
    def entries(self) -> Mapping[str, ModelEntry]:
        """The models by id, in the order of the file, reloaded if the file has changed."""
        return {} if self._newest is None else self._newest.value

    def workers(self, base_model: str) -> Workers:
        """What the file says of a model's workers; nothing for a model that it does not name."""
        entry = self.entries.get(base_model)
        return Workers() if entry is None else entry.workers
