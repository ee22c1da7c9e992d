"""Retraining: prompts move to another base model. For each version that an alias names, a job trains the same data by
the same spec on the new model, and takes the alias over only if it beats the old version.

The old version can't run beside the new model. The gate compares the new prompt with the held-out answers that the old
version's job kept (docs/models.md says by which metrics). What can't be compared is refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from shared.errors import PreconditionFailed
from shared.names import DEFAULT_ALIAS, NO_ALIAS, version_name
from shared.values.base_model import BaseModelInfo
from shared.values.enums import InitMethod, Metric, TaskKind
from shared.values.hyperparameters import Hyperparameters
from shared.values.prompts import Alias
from shared.values.report import MIN_EXAMPLES
from shared.values.spec import PublishGate, PublishPolicy, TuningSpec
from softprompt.client.clone import cloned_spec
from softprompt.client.convert import is_stored
from softprompt.types.jobs import TuningJob
from softprompt.types.prompts import PromptVersion
from softprompt.types.report import JobReport

RETRAINED_FROM, RETRAINED_FOR = "retrained-from", "retrained-for"
"""Annotations of a retraining's job: the version, and the fingerprint of the new base model."""


@dataclass(frozen=True)
class PlannedRetraining:
    """One version that an alias names, and what happens with it."""

    version: str
    """ "prompts/{prompt}/versions/{n}"."""
    aliases: tuple[str, ...]
    """All aliases that name the version."""
    alias: str = ""
    """The alias that moves to the new version if that beats the old one; empty: none moves."""
    base_model: str = ""
    """Id of the old base model."""
    data_kept: bool | None = None
    """Whether the trainer still has the examples; None if that was not found out."""
    num_examples: int | None = None
    """Examples to train on and held out, together."""
    estimated_seconds: float | None = None
    """Time on a worker; None without earlier jobs of the new base model."""
    num_comparable: int = 0
    """Held-out answers of the old version's job that the gate can compare."""
    metric: str = ""
    """What the gate compares."""
    job: TuningJob | None = None
    """The job of an earlier call, or the one that was created."""
    refused: str = ""
    """Why no job is created; empty if one is, or need not be."""
    notes: tuple[str, ...] = ()
    spec: TuningSpec | None = None
    request_id: str = ""

    @property
    def prompt(self) -> str:
        """The prompt's name."""
        return self.version.split("/")[1]

    @property
    def is_new(self) -> bool:
        """Whether a job is to be created."""
        return self.spec is not None and self.job is None and not self.refused


@dataclass(frozen=True)
class RetrainingPlan:
    """What a retraining will do. Nothing has been created."""

    base_model: BaseModelInfo
    """The new one."""
    num_replicas: int | None
    """Live replicas of the new base model; None if unknown. Without one, no moved alias is served."""
    prompts: tuple[PlannedRetraining, ...]
    """Sorted by prompt. Versions of the new base model are left out."""
    num_there: int = 0
    """Versions that aliases name and that belong to the new base model already."""


def aliased_versions(prompt: str, aliases: tuple[Alias, ...]) -> Iterator[PlannedRetraining]:
    """The versions that aliases name, each once. An alias that splits its traffic is refused: its canary must end."""
    named: dict[int, list[str]] = {}
    for alias in aliases:
        if len(alias.targets) == 1:
            named.setdefault(alias.targets[0].version, []).append(alias.name)
            continue
        numbers = ", ".join(str(target.version) for target in alias.targets)
        heaviest = max(alias.targets, key=lambda target: (target.weight, target.version))
        refused = f"{alias.name} divides its traffic among the versions {numbers}: give it one version first"
        yield PlannedRetraining(version_name(prompt, heaviest.version), (alias.name,), refused=refused)
    for number, names in sorted(named.items()):
        ordered = sorted(names, key=lambda name: (name != DEFAULT_ALIAS, name))
        stay = [f"{', '.join(ordered[1:])} will still name version {number}"] if ordered[1:] else []
        yield PlannedRetraining(version_name(prompt, number), tuple(ordered), ordered[0], notes=tuple(stay))


def request_id(version: PromptVersion, model: BaseModelInfo, alias: str, earlier: Sequence[TuningJob]) -> str:
    """The request id of the version's retraining, so that a repeated call, also of another caller at the same time,
    finds the job of the first. It has the names of `earlier` jobs, which failed or were cancelled: after them, a new
    job is made, also once others were deleted.
    """
    text = "\n".join((version.name, version.digest, model.fingerprint, alias, *sorted(job.name for job in earlier)))
    return f"retrain-{hashlib.sha256(text.encode()).hexdigest()[:32]}"


def annotations_of(version: PromptVersion, model: BaseModelInfo) -> dict[str, str]:
    """By which the job is found again."""
    return {RETRAINED_FROM: version.name, RETRAINED_FOR: model.fingerprint}


def retraining_spec(
    version: PromptVersion, job: TuningJob | None, model: BaseModelInfo, alias: str
) -> tuple[TuningSpec, list[str]]:
    """The spec of a version's retraining, and notes on what differs from the old one. `job`: the version's; None: it
    is not there, and the version's own record of its training takes its place.
    """
    changes: dict[str, Any] = {"base_model": model.id, "deadline": None}
    notes = []
    if job is not None:
        old = cloned_spec(job, {})
    else:
        old = _recorded_spec(version)
        notes.append("its job is not there: the recipe chooses the hyperparameters again")
    init = old.hyperparameters.init
    if init is not None and init.chosen_method is InitMethod.FROM_PROMPT:
        changes["hyperparameters"] = replace(old.hyperparameters, init=None)
        notes.append(f"it began from {init.source}, which belongs to another base model: the recipe chooses the start")
    gate = old.publish.gate or PublishGate()
    counts_tokens = metric_of(version, job) in (Metric.LOSS, Metric.TOKEN_ACCURACY)
    same_tokens = version.base_model is not None and version.base_model.tokenizer_digest == model.tokenizer_digest
    if gate.minimum_metric is not None and counts_tokens and not same_tokens:
        gate = replace(gate, minimum_metric=None)
        notes.append("its gate's bound is left out: it counts the old tokenizer's tokens")
    gate = replace(gate, beat_current=bool(alias), beat_bare_model=gate.beat_bare_model or not alias)
    changes["publish"] = PublishPolicy(alias or NO_ALIAS, gate, old.publish.wait_until_served_seconds)
    changes["annotations"] = {**old.annotations, **annotations_of(version, model)}
    return replace(old, **changes), notes


def metric_of(version: PromptVersion, job: TuningJob | None) -> Metric:
    """The metric that judged the version."""
    effective = None if job is None else job.effective_spec
    if effective is not None and effective.hyperparameters.metric is not None:
        return effective.hyperparameters.metric
    return _recorded_metric(version) or Metric.LOSS


def comparable(metric: Metric, report: JobReport | None) -> int:
    """Number of held-out answers in the old job's report that the gate can compare by the metric."""
    answers = () if report is None else report.answers
    return sum(answer.tuned is not None and answer.tuned.is_comparable(metric) for answer in answers)


def why_not_comparable(metric: Metric, num_comparable: int) -> str:
    """Why the gate could not compare the old version; empty if it can."""
    if metric is Metric.TOKEN_ACCURACY:
        return "token_accuracy counts tokens, which differ between base models"
    if num_comparable < MIN_EXAMPLES:
        kept = f"{num_comparable} held-out answers are kept that can be compared by {metric.value.lower()}"
        return f"{kept}; the gate needs {MIN_EXAMPLES}"
    return ""


def _recorded_spec(version: PromptVersion) -> TuningSpec:
    """A spec from the version's own record, for a version whose job is not there. An imported version may record
    anything: a path as its dataset would name a file of this machine.
    """
    recipe, template = version.recipe, version.template
    dataset, held_out = recipe.get("dataset"), recipe.get("validation_dataset")
    fraction = None if held_out else recipe.get("validation_fraction")
    if not is_stored(dataset) or (held_out and not is_stored(held_out)):
        raise PreconditionFailed("its record names no examples: train it again from a file of examples")
    return TuningSpec(
        prompt=version.name.split("/")[1],
        dataset=dataset,
        validation_dataset=held_out or None,
        validation_fraction=float(fraction) if fraction and isinstance(fraction, int | float) else None,
        template=None if template is None else replace(template, format=None, lead="", end="", rendering=1),
        task=next((kind for kind in TaskKind if kind == recipe.get("task")), None),
        labels=version.labels,
        hyperparameters=Hyperparameters(metric=_recorded_metric(version)),
        sampling_defaults=version.sampling_defaults or TuningSpec("", "").sampling_defaults,
    )


def _recorded_metric(version: PromptVersion) -> Metric | None:
    recorded = version.recipe.get("hyperparameters")
    known = recorded.get("metric") if isinstance(recorded, Mapping) else None
    return next((metric for metric in Metric if metric == known), None)
