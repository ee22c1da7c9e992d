"""What a caller can choose about a training. The recipe chooses the rest (`trainer_service.training.recipe`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from shared.values.bounds import Bounds, bounded, check_bounds
from shared.values.enums import InitMethod, LearningRateSchedule, Metric, PrefixKind, Reparameterisation
from shared.violations import Violations

MAX_VIRTUAL_TOKENS = 1024
_MAX_INIT_TEXT_CHARS = 32_768
_CLASS_WEIGHT = Bounds(0, 1e6, above_low=True)


@dataclass(frozen=True)
class Init:
    """Initialisation of the soft prompt. A text or a source alone implies the method that uses it."""

    # the job store and manifests have the name that `source` had at first
    __pydantic_config__: ClassVar[dict[str, Any]] = {
        "extra": "forbid",
        "alias_generator": lambda name: "source_version" if name == "source" else name,
        "serialize_by_alias": True,
    }

    method: InitMethod | None = None
    """None: the method that uses the text or the source, else the recipe's choice."""
    text: str = ""
    """For TEXT. Empty: the recipe writes one from the template and the task."""
    source: str = ""
    """For FROM_PROMPT: a reference of a prompt ("name", "name@alias", "name@7"), or "tuningJobs/<id>" of a job that
    ended without a version and whose best prompt is kept. Becomes a resource name when the job is created.
    """

    @property
    def chosen_method(self) -> InitMethod | None:
        """The method, given or implied; None: the recipe chooses."""
        implied = InitMethod.FROM_PROMPT if self.source else InitMethod.TEXT if self.text else None
        return self.method or implied

    def check(self, path: str, violations: Violations) -> None:
        """Adds a violation for each field that doesn't fit the method."""
        method = self.chosen_method
        if len(self.text) > _MAX_INIT_TEXT_CHARS:
            text = f"has {len(self.text)} characters; at most {_MAX_INIT_TEXT_CHARS} are allowed"
            violations.add(f"{path}.text", text)
        if self.text and method is not InitMethod.TEXT:
            violations.add(f"{path}.text", f"is only used by METHOD_TEXT, not by METHOD_{method}")
        if self.source and method is not InitMethod.FROM_PROMPT:
            violations.add(f"{path}.source", f"is only used by METHOD_FROM_PROMPT, not by METHOD_{method}")
        if method is InitMethod.FROM_PROMPT and not self.source:
            violations.add(f"{path}.source", "must name the prompt to start from: NAME, NAME@ALIAS or NAME@VERSION")


@dataclass(frozen=True)
class Hyperparameters:
    """The service chooses what is None and reports it in the job's effective spec."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "allow_inf_nan": False}

    num_virtual_tokens: int | None = bounded(None, 1, MAX_VIRTUAL_TOKENS)
    init: Init | None = None
    reparameterisation: Reparameterisation | None = None
    learning_rate: float | None = bounded(None, 0, 10, above_low=True)
    schedule: LearningRateSchedule | None = None
    warmup_steps: int | None = bounded(None, 0, 1_000_000)
    weight_decay: float | None = bounded(None, 0, 1)
    max_grad_norm: float | None = bounded(None, 0, 1e6)
    """0: no clipping."""
    batch_size: int | None = bounded(None, 1, 4096)
    num_epochs: float | None = bounded(None, 0, 10_000, above_low=True)
    """Passes over the examples. Exclusive with num_steps."""
    num_steps: int | None = bounded(None, 1, 10_000_000)
    evaluation_interval_steps: int | None = bounded(None, 1, 1_000_000)
    early_stop_patience: int | None = bounded(None, 0, 10_000)
    """Evaluations without improvement before stopping; 0: never stop early."""
    label_smoothing: float | None = bounded(None, 0, 1, below_high=True)
    balance_classes: bool | None = None
    """Weigh each class by its inverse frequency (classification only)."""
    class_weights: Mapping[str, float] = field(default_factory=dict)
    """By label; 1 for those left out (classification only). Exclusive with balance_classes."""
    kind: PrefixKind | None = None
    """A soft prompt, or a prefix of keys and values."""
    metric: Metric | None = None
    seed: int | None = bounded(None, 0, 2**63 - 1)
    search: bool | None = None
    """Begin with six candidates (three learning rates, two inits) and keep the one with the lowest training loss."""

    def check(self, path: str, violations: Violations) -> None:
        """Adds a violation for each field below `path` that is out of range or excluded by another one."""
        check_bounds(self, path, violations)
        if self.num_epochs is not None and self.num_steps is not None:
            violations.add(f"{path}.num_epochs", "excludes num_steps: give one of them")
        for label, weight in self.class_weights.items():
            if not _CLASS_WEIGHT.contains(weight):
                violations.add(f"{path}.class_weights.{label[:40]}", f"must be {_CLASS_WEIGHT}, is {weight:.15g}")
        if self.init is not None:
            self.init.check(f"{path}.init", violations)
