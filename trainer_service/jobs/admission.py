"""Whether a spec can be trained here, found out when the job is created and not an hour later on a worker; and what it leaves open.

Everything that can be known without the model's weights is checked: names, data, labels, template, ranges, token lengths against the
model's context, the version to start from. All violations are collected, and named as the caller wrote them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from shared.errors import InvalidInput
from shared.names import check_alias, check_name
from shared.template import InputEncoder, Template, TemplateFormat, pinned
from trainer_service.base_models import BaseModels, KnownBaseModel
from trainer_service.jobs.dataset_fields import DATASET, VALIDATION, in_dataset, labels_under, renamed
from trainer_service.jobs.gate import check_gate
from trainer_service.jobs.lengths import possibly_too_long
from trainer_service.jobs.model import EffectiveSpec, TuningSpec, utc_now
from trainer_service.jobs.sources import Source, Sources, names_job
from trainer_service.pools import TrainerPools
from trainer_service.service_info import TuningLimits
from trainer_service.training.dataset import ParsedDataset, encode_dataset, split_validation
from trainer_service.training.recipe import check_init, fill
from trainer_service.training.repetition import Repetition, repetition_of
from trainer_service.training.spec import Example, Hyperparameters, InitMethod, TaskKind, TrainingSpec
from trainer_service.violations import Violations

DEFAULT_VALIDATION_FRACTION = 0.1
MAX_DEFAULT_VALIDATION_EXAMPLES = 500
MAX_ANNOTATION_KEY_CHARS, MAX_ANNOTATION_VALUE_CHARS = 63, 1024
_WIRE_NAMES = {
    "validation_fraction": "spec.validation_fraction",
    "spec.hyperparameters.init.source_version": "spec.hyperparameters.init.source",
}


class Datasets(Protocol):
    def parse(self, name: str, labels: Sequence[str] = ()) -> ParsedDataset: ...


@dataclass(frozen=True)
class _Examples:
    """The examples of a job, split."""

    task: TaskKind
    labels: tuple[str, ...]
    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    validation_fraction: float
    repetition: Repetition


class SpecAdmission:
    """A few specs are checked at a time, in threads of their own, so that large datasets hold up neither the service nor other tenants."""

    def __init__(
        self, models: BaseModels, datasets: Datasets, sources: Sources, limits: TuningLimits, pools: TrainerPools | None = None
    ) -> None:
        self._models, self._datasets, self._sources, self._limits = models, datasets, sources, limits
        self._pools = pools or TrainerPools()

    async def check(self, spec: TuningSpec) -> EffectiveSpec:
        """Raises InvalidInput with everything that is wrong, NotFound for what the spec names and isn't there, or PreconditionFailed.

        Only a spec that starts from a version asks the prompt store, and it waits for the store outside the threads that all share.
        """
        model, examples = await self._pools.job_checks.call(self._check, spec)
        source = await self._source(spec, model)
        with renamed(_as_on_the_wire):
            return await self._pools.job_checks.call(self._effective, spec, model, source, examples)

    def _check(self, spec: TuningSpec) -> tuple[KnownBaseModel, _Examples]:
        violations = Violations()
        self._check_form(spec, violations)
        with violations.collected():
            model = self._models.get(spec.base_model, "spec.base_model")
        with violations.collected(), renamed(_as_on_the_wire):
            examples = self._examples(spec)
        violations.raise_if_any()
        return model, examples

    def _check_form(self, spec: TuningSpec, violations: Violations) -> None:
        """What can be judged by the spec alone."""
        with violations.collected():
            check_name(spec.prompt, "spec.prompt")
        if spec.publish.alias:
            with violations.collected():
                check_alias(spec.publish.alias, "spec.publish.alias")
        elif spec.publish.gate is not None and spec.publish.gate.beat_current:
            violations.add("spec.publish.gate.beat_current", "needs an alias: there is no current version to beat without one")
        with violations.collected():
            self._check_virtual_tokens(spec.hyperparameters.num_virtual_tokens or 0)
        if (spec.max_runtime_seconds or 0) > self._limits.max_runtime_seconds:
            violations.add("spec.max_runtime", f"is more than this trainer's limit of {self._limits.max_runtime_seconds:g} seconds")
        if spec.deadline is not None and spec.deadline <= utc_now():
            violations.add("spec.deadline", "has passed")
        for key, value in spec.annotations.items():
            if not 0 < len(key) <= MAX_ANNOTATION_KEY_CHARS or len(value) > MAX_ANNOTATION_VALUE_CHARS or "\0" in key + value:
                limits = f"1 to {MAX_ANNOTATION_KEY_CHARS} characters, its value at most {MAX_ANNOTATION_VALUE_CHARS}, neither NUL"
                violations.add(f"spec.annotations[{key[:MAX_ANNOTATION_KEY_CHARS]!r}]", f"a key must have {limits}")

    def _check_virtual_tokens(self, num_virtual_tokens: int) -> None:
        limit = self._limits.max_virtual_tokens
        if num_virtual_tokens > limit:
            reason = f"{num_virtual_tokens} is more than this trainer's limit of {limit}"
            raise InvalidInput.of("spec.hyperparameters.num_virtual_tokens", reason)

    async def _source(self, spec: TuningSpec, model: KnownBaseModel) -> Source | None:
        """What FROM_PROMPT starts from."""
        init = spec.hyperparameters.init
        if init is None or init.method is not InitMethod.FROM_PROMPT:
            return None
        pool = self._pools.job_database if names_job(init.source_version) else self._pools.prompt_store
        with renamed(_as_on_the_wire):
            return await pool.call(self._sources.find, init.source_version, model.info)

    def _examples(self, spec: TuningSpec) -> _Examples:
        parsed = self._datasets.parse(spec.dataset, spec.labels)
        repetition = repetition_of(parsed.examples)
        if spec.task not in (None, parsed.task):
            raise InvalidInput.of("spec.task", f"is {spec.task}, but the dataset's examples are for {parsed.task}")
        if spec.validation_dataset:
            with renamed(lambda field: field.replace(DATASET, VALIDATION, 1) if field.startswith(DATASET) else field):
                held_out = self._datasets.parse(spec.validation_dataset, parsed.labels)
            if held_out.task is not parsed.task:
                raise InvalidInput.of(
                    "spec.validation_dataset", f"its examples are for {held_out.task}, the training examples for {parsed.task}"
                )
            return _Examples(parsed.task, parsed.labels, parsed.examples, held_out.examples, 0.0, repetition)
        num_examples = len(parsed.examples)
        if num_examples < 2:
            raise InvalidInput.of("spec.dataset", "has one example; at least two are needed, since one is held out for evaluation")
        fraction = spec.validation_fraction or _default_fraction(num_examples)
        train, validation = split_validation(parsed.examples, fraction, spec.hyperparameters.seed or 0)
        return _Examples(parsed.task, parsed.labels, train, validation, fraction, repetition)

    def _effective(self, spec: TuningSpec, model: KnownBaseModel, source: Source | None, examples: _Examples) -> EffectiveSpec:
        template = _template(spec, examples.task, model.tokenizer)
        encoder = InputEncoder(model.tokenizer, template)
        check_gate(spec.publish.gate, len(examples.validation))
        filled = fill(
            spec.hyperparameters,
            examples.task,
            len(examples.train),
            model.info,
            template,
            examples.labels,
            source_virtual_tokens=None if source is None else source.num_virtual_tokens,
        )
        self._check_virtual_tokens(filled.num_virtual_tokens)
        filled = _with_source(filled, source)
        check_init(filled.init, examples.labels, model.tokenizer)
        training = TrainingSpec(task=examples.task, template=template, labels=examples.labels, hyperparameters=filled)
        _check_lengths(examples, encoder, training, model.info.max_positions)
        return EffectiveSpec(
            base_model=model.info,
            training=training,
            validation_fraction=examples.validation_fraction,
            source_version=source.name if source is not None and source.digest else "",
            source_digest="" if source is None else source.digest,
            source_job="" if source is None else source.job_id,
            max_runtime_seconds=spec.max_runtime_seconds or self._limits.max_runtime_seconds,
            num_train=len(examples.train),
            num_validation=len(examples.validation),
            repetition=examples.repetition,
        )


def _check_lengths(examples: _Examples, encoder: InputEncoder, training: TrainingSpec, max_positions: int) -> None:
    """Raises InvalidInput naming the lines of examples that don't fit into the model's context beside the virtual tokens."""
    violations = Violations()
    room = max_positions - training.hyperparameters.num_virtual_tokens
    for which, part in ((DATASET, examples.train), (DATASET if examples.validation_fraction else VALIDATION, examples.validation)):
        with violations.collected(), renamed(in_dataset(which)):
            encode_dataset(possibly_too_long(part, encoder, room), encoder, training, max_positions)
    violations.raise_if_any()


def _default_fraction(num_examples: int) -> float:
    """A tenth, but at least one example, and not more than evaluating often can bear."""
    return max(1 / num_examples, min(DEFAULT_VALIDATION_FRACTION, MAX_DEFAULT_VALIDATION_EXAMPLES / num_examples))


def _template(spec: TuningSpec, task: TaskKind, tokenizer: Any) -> Template:
    """The caller's template, everything fixed that it left open: the format is CHAT for chat examples, else TEXT."""
    template = spec.template or Template()
    if "format" not in template.model_fields_set:
        template = template.model_copy(update={"format": TemplateFormat.CHAT if task is TaskKind.CHAT else TemplateFormat.TEXT})
    if task is TaskKind.CHAT and template.format is not TemplateFormat.CHAT:
        raise InvalidInput.of("spec.template.format", "must be CHAT, since the examples are conversations")
    return pinned(template.check("spec.template"), tokenizer)


def _with_source(filled: Hyperparameters, source: Source | None) -> Hyperparameters:
    """A reference such as `name@alias` means the version that it names now."""
    if source is None:
        return filled
    return filled.model_copy(update={"init": filled.init.model_copy(update={"source_version": source.name})})


def _as_on_the_wire(field: str) -> str:
    return f"spec.{field}" if field.startswith("template.") else _WIRE_NAMES.get(field, labels_under("spec")(field))
