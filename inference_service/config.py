"""The inference service's settings, SOFTPROMPT_INFERENCE_*, read once at start.

Properties convert them to the configuration of each part.
"""

from __future__ import annotations

import os
import re
import socket
from dataclasses import fields, replace
from pathlib import Path
from typing import Self

from pydantic import Field, ValidationInfo, field_validator

from inference_service.engine.core.config import EngineConfig, EngineSettings
from inference_service.limits import RequestLimits
from shared.config import ConfigError, ServerSettings, settings_config
from shared.model.models_file import ModelsFile
from shared.model.options import ModelOptions
from shared.names import NAME_PATTERN
from shared.process.user_cache import user_cache
from shared.values.sampling import LIMITS, Sampling, SamplingLimits

_EVERY_INTERFACE = ("0.0.0.0", "::", "[::]")
_GOLDEN_LOGPROBS = 64  # what the replay of golden records may need, whatever callers may ask for


class InferenceSettings(ServerSettings, ModelOptions, EngineSettings):
    """All settings of the inference service."""

    model_config = settings_config("SOFTPROMPT_INFERENCE_")

    models_file: Path | None = None
    """JSON file of base models (docs/models.md). `base_model` may then be the id of one of them; its source, dtype and
    weights override the settings, and `num_gpus` 0 of its replicas the device.
    """
    base_model: str = Field(min_length=1)
    """The frozen model that answers: a model directory or a hub id."""
    base_model_id: str = ""
    """Short name of the model for callers; empty: the last part of base_model."""
    store_url: str = Field(min_length=1)
    """Prompt store, shared with the trainer: a directory, or the URL of an object store (s3://bucket/prefix)."""
    store_timeout_seconds: float = Field(default=30, ge=0.1, le=600)
    """Time limit of each request to the prompt store; a slower store counts as unavailable."""
    num_threads: int = Field(default=0, ge=0, le=1024)
    """Compute threads; 0: OMP_NUM_THREADS, or one per processor.

    The latter is limited to the container's CPU quota, rounded down, and at least 1.
    """
    poll_seconds: float = Field(default=0.0, ge=0, le=3600)
    """Time between two polls of the store; 0: the store's default (0.15 s for a directory, 2 s for an object store)."""
    replica: str = Field(default="", pattern=rf"^(?:{NAME_PATTERN})?$")
    """Name of this replica in the store's heartbeats; empty: host name and process id."""
    address: str = Field(default="", max_length=300)
    """Address at which routers reach this replica, as host:port, for its heartbeats.

    Empty: `host` with the port, or this machine's name with the port if `host` is every interface.
    """
    heartbeat_seconds: float = Field(default=5.0, ge=0.1, le=3600)
    """Time between two heartbeats in the store."""
    usage_dir: Path | None = None
    """Directory for records of usage until the prompt store has them; replicas on one machine share it.

    Empty: the user's cache directory. Keep it over restarts: what a killed replica has left there is published later.
    """
    usage_seconds: float = Field(default=10, ge=0.1, le=3600)
    """Time between two publications of usage to the prompt store, and between two looks at budgets."""
    max_loaded_versions: int = Field(default=4096, ge=1)
    """Maximum number of loaded versions; the least recently used are dropped and load again on their next use."""
    start_versions: int = Field(default=64, ge=0)
    """Maximum number of versions to load before the replica is ready; 0: all that aliases name.

    Those of recently used prompts come first. Others load on their first request.
    """
    start_seconds: float = Field(default=120, gt=0, le=3600)
    """Maximum time for these loads; then the replica is ready, and they continue."""
    max_input_bytes: int = Field(default=1 << 20, ge=1 << 10, le=1 << 28)
    """Maximum size of an input in bytes."""
    max_new_tokens: int = Field(default=LIMITS.max_new_tokens, ge=1)
    """Maximum number of generated tokens of a request."""
    max_stop_sequences: int = Field(default=LIMITS.max_stop_sequences, ge=0, le=1024)
    """Maximum number of stop sequences of a request."""
    max_logprobs: int = Field(default=LIMITS.max_logprobs, ge=0, le=1024)
    """Maximum number of alternatives in log-probabilities."""
    max_candidates: int = Field(default=LIMITS.max_candidates, ge=1, le=4096)
    """Maximum number of candidates of a Score call."""
    max_completions: int = Field(default=LIMITS.max_completions, ge=1, le=1024)
    """Maximum number of completions (n) of a request."""
    max_guide_bytes: int = Field(default=LIMITS.max_guide_bytes, ge=0, le=1 << 20)
    """Maximum size of a guide in bytes."""
    guide_cache_bytes: int = Field(default=256 << 20, ge=0, le=1 << 36)
    """Estimated memory of the compiled guides that are kept for later requests; 0 keeps none."""
    default_temperature: float = Field(default=0.0, ge=0, le=10)
    """Temperature if neither request nor version sets one; 0 is greedy."""
    default_top_p: float = Field(default=1.0, gt=0, le=1)
    """top_p if neither request nor version sets one."""
    default_max_new_tokens: int = Field(default=256, ge=1)
    """Maximum number of generated tokens if neither request nor version sets one."""
    max_prompt_labels: int | None = Field(default=None, ge=0, le=10_000)
    """Maximum number of prompts with their own metrics; further ones share the label `other`.

    Unset: 100, or 0 if the callers file has several tenants at start, since the metrics port has no authentication.
    """

    def with_models_file(self) -> Self:
        """These settings, with the base model's entry in the models file applied. Raises ConfigError."""
        try:
            entry = ModelsFile(self.models_file).entries.get(self.base_model)
        except ConfigError as error:
            raise ConfigError(f"SOFTPROMPT_INFERENCE_MODELS_FILE: {error}") from None
        if entry is None:
            return self
        chosen = {
            "base_model": entry.source,
            "base_model_id": entry.id,
            "dtype": entry.dtype,
            "weights": entry.weights,
            "device": "cpu" if entry.replicas.num_gpus == 0 else None,
        }
        return self.model_copy(update={name: value for name, value in chosen.items() if value is not None})

    def num_prompt_labels(self, num_tenants: int) -> int:
        """`max_prompt_labels`, or the default for `num_tenants` if it is unset."""
        if self.max_prompt_labels is not None:
            return self.max_prompt_labels
        return 0 if num_tenants > 1 else 100

    @field_validator("default_max_new_tokens")
    @classmethod
    def _default_within_the_bound(cls, value: int, info: ValidationInfo) -> int:
        if value > info.data.get("max_new_tokens", value):
            raise ValueError(f"must not be above max_new_tokens, which is {info.data['max_new_tokens']}")
        return value

    def usage_folder(self, store_id: str) -> Path:
        """The directory of usage for one store."""
        return (self.usage_dir or user_cache() / "usage") / (re.sub(r"[^A-Za-z0-9-]", "-", store_id) or "store")

    @property
    def resolved_replica(self) -> str:
        """`replica`, or a name from host name and process id if it is unset."""
        if self.replica:
            return self.replica
        host = "".join(c if c.isascii() and c.isalnum() else "-" for c in socket.gethostname().lower()).strip("-")[:40]
        return f"{host or 'replica'}-{os.getpid()}"

    def reachable_at(self, port: int) -> str:
        """`address`, or the one that `host` and the port that was bound imply."""
        if self.address:
            return self.address
        return f"{socket.gethostname() if self.host in _EVERY_INTERFACE else self.host}:{port}"

    @field_validator("address")
    @classmethod
    def _address_has_a_port(cls, value: str) -> str:
        host, _, port = value.rpartition(":")
        if value and not (host and port.isdecimal() and value.isprintable() and "/" not in value):
            raise ValueError("must be host:port")
        return value

    @property
    def engine(self) -> EngineConfig:
        """The engine's configuration."""
        limits = replace(self.sampling_limits, max_logprobs=max(self.max_logprobs, _GOLDEN_LOGPROBS))
        return EngineConfig.of(self, limits=limits)

    @property
    def sampling_limits(self) -> SamplingLimits:
        """The limits of sampling parameters."""
        names = (field.name for field in fields(SamplingLimits))
        return SamplingLimits(**{name: getattr(self, name) for name in names if name in InferenceSettings.model_fields})

    def request_limits(self, max_length: int, length_limit: str) -> RequestLimits:
        """Limits of requests; `max_length` and `length_limit` are those of the engine, which knows the model."""
        return RequestLimits(self.sampling_limits, self.max_input_bytes, max_length, length_limit)

    @property
    def default_sampling(self) -> Sampling:
        """Sampling parameters for requests and versions that set none."""
        return Sampling(
            temperature=self.default_temperature, top_p=self.default_top_p, max_new_tokens=self.default_max_new_tokens
        )
