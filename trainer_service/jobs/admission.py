"""Checks, when a job is created, whether its spec can be trained here, and fills in its defaults.

It checks everything that can be known without the model's weights: names, data, labels, template, ranges, token lengths
against the model's context, the prompt to start from. All violations are collected; they name the fields as the caller
wrote them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from shared.errors import InvalidInput
from shared.text.counted import counted
from shared.text.template import INPUT_FIELD, InputEncoder, Template, TemplateFormat, default_format, pinned
from shared.values.base_model import BaseModelInfo
from shared.values.spec import Distillation, PublishGate
from shared.violations import Violations, moved
from trainer_service.base_models import BaseModels, KnownBaseModel
from trainer_service.jobs.model import EffectiveSpec, SampledLengths, StoredSpec, utc_now
from trainer_service.jobs.sources import Source, Sources, names_job
from trainer_service.pools import TrainerPools
from trainer_service.service_info import RequestLimits
from trainer_service.training.comparison import MIN_EXAMPLES, MOST
from trainer_service.training.data.dataset_facts import DatasetFacts, Description
from trainer_service.training.data.encoding import EncodedDataset, encode_dataset
from trainer_service.training.data.places import DATASET, VALIDATION, in_dataset, in_message
from trainer_service.training.data.split import check_split
from trainer_service.training.distillation.texts import check_lengths, check_roles, with_text_init
from trainer_service.training.distillation.texts import filled as filled_distillation
from trainer_service.training.recipe.defaults import check_init, fill
from trainer_service.training.spec import (
    Example,
    FilledDistillation,
    InitMethod,
    Metric,
    TaskKind,
    TooLong,
    TrainingSpec,
)

DEFAULT_VALIDATION_FRACTION = 0.1
MAX_DEFAULT_VALIDATION_EXAMPLES = 500
_IN_SPEC = in_message("spec", "labels", "template")
_SAMPLED_CHARS = 1 << 20
"""Characters of examples that are tokenized when a job is created, which takes about a second."""


@dataclass(frozen=True)
class _Examples:
    """Facts about a job's examples. Only samples are checked here, so that creation is fast; the worker reads all.

    `samples`: a sample of each dataset, by the dataset's name in errors.
    """

    facts: DatasetFacts
    """Of the training dataset."""
    labels: tuple[str, ...]
    samples: Mapping[str, tuple[Example, ...]]
    num_train: int
    num_validation: int
    validation_fraction: float = 0.0
    distillation: FilledDistillation | None = None
    """If set, `samples` are the text and questions, and the other numbers are those of the questions to ask."""


class SpecAdmission:
    """Checks a few specs at a time in a separate thread pool, so large datasets delay neither the service nor other
    tenants.
    """

    def __init__(
        self,
        models: BaseModels,
        describe: Callable[[str, Sequence[str]], Description],
        sources: Sources,
        limits: RequestLimits,
        pools: TrainerPools | None = None,
        *,
        on_gpu: Callable[[str], bool] = lambda base_model: False,
    ) -> None:
        """`describe(name, labels)`: of a stored dataset. `on_gpu(id)`: whether a base model's workers have GPUs."""
        self._models, self._describe, self._sources, self._limits = models, describe, sources, limits
        self._on_gpu = on_gpu
        self._pools = pools or TrainerPools()

    async def check(self, spec: StoredSpec, unstored: Mapping[str, Description] | None = None) -> EffectiveSpec:
        """The spec with all defaults filled in. `unstored`: datasets by name that are not in the store.

        Raises InvalidInput with all violations, NotFound if something that the spec names doesn't exist, or
        PreconditionFailed.

        Only a spec that starts from a version reads the prompt store, in the store's thread pool.
        """
        model, examples = await self._pools.job_checks.call(self._check, spec, unstored or {})
        source = await self._source(spec, model)
        with moved(_IN_SPEC):
            return await self._pools.job_checks.call(self._effective, spec, model, source, examples)

    async def check_form(self, spec: StoredSpec) -> None:
        """What `check` finds without the data: names, limits, base model, the prompt to start from."""
        violations = Violations()
        model = await self._pools.job_checks.call(self._model, spec, violations)
        await self._source(spec, violations.complete(model))

    def _check(self, spec: StoredSpec, unstored: Mapping[str, Description]) -> tuple[KnownBaseModel, _Examples]:
        violations = Violations()
        model = self._model(spec, violations)
        with violations.collected(), moved(_IN_SPEC):
            examples = self._examples(spec, unstored)
        return violations.complete(model), examples

    def _model(self, spec: StoredSpec, violations: Violations) -> KnownBaseModel | None:
        """The base model, after checks against this trainer's limits. The spec's form was checked when it was read
        (`TuningSpec.check`).
        """
        with violations.collected():
            self._check_virtual_tokens(spec.hyperparameters.num_virtual_tokens or 0)
        if (spec.max_runtime_seconds or 0) > self._limits.max_runtime_seconds:
            violations.add(
                "spec.max_runtime", f"is more than this trainer's limit of {self._limits.max_runtime_seconds:g} seconds"
            )
        if spec.deadline is not None and spec.deadline <= utc_now():
            violations.add("spec.deadline", "has passed")
        return violations.result_of(lambda: self._models.get(spec.base_model, "spec.base_model"))

    def _check_virtual_tokens(self, num_virtual_tokens: int) -> None:
        limit = self._limits.max_virtual_tokens
        if num_virtual_tokens > limit:
            reason = f"{num_virtual_tokens} is more than this trainer's limit of {limit}"
            raise InvalidInput.of("spec.hyperparameters.num_virtual_tokens", reason)

    async def _source(self, spec: StoredSpec, model: KnownBaseModel) -> Source | None:
        """The prompt that FROM_PROMPT starts from; None for another method."""
        init = spec.hyperparameters.init
        if init is None or init.chosen_method is not InitMethod.FROM_PROMPT:
            return None
        pool = self._pools.job_database if names_job(init.source) else self._pools.prompt_store
        return await pool.call(self._sources.find, init.source, model.info)

    def _examples(self, spec: StoredSpec, unstored: Mapping[str, Description]) -> _Examples:
        facts, sample = unstored.get(spec.dataset) or self._describe(spec.dataset, spec.labels)
        labels = spec.labels or facts.labels
        if spec.task not in (None, facts.task):
            raise InvalidInput.of("spec.task", f"is {spec.task}, but the dataset's examples are for {facts.task}")
        if spec.distillation is not None:
            return _distilled(spec.distillation, spec.validation_fraction, facts, sample)
        if spec.validation_dataset:
            with moved(in_dataset(VALIDATION)):
                name = spec.validation_dataset
                held_out, held_out_sample = unstored.get(name) or self._describe(name, labels)
            if held_out.task is not facts.task:
                text = f"its examples are for {held_out.task}, the training examples for {facts.task}"
                raise InvalidInput.of("spec.validation_dataset", text)
            samples = {DATASET: sample, VALIDATION: held_out_sample}
            return _Examples(facts, labels, samples, facts.num_examples, held_out.num_distinct)
        num_examples = facts.num_examples
        if num_examples < 2:
            text = "has one example; at least two are needed, since one is held out for evaluation"
            raise InvalidInput.of("spec.dataset", text)
        fraction = spec.validation_fraction or _default_fraction(num_examples)
        num_validation = check_split(num_examples, facts.num_distinct, fraction)
        return _Examples(facts, labels, {DATASET: sample}, num_examples - num_validation, num_validation, fraction)

    def _effective(
        self, spec: StoredSpec, model: KnownBaseModel, source: Source | None, examples: _Examples
    ) -> EffectiveSpec:
        task = examples.facts.task
        template = _template(spec, task, model.tokenizer)
        encoder = InputEncoder(model.tokenizer, template)
        encoder.check_stops(spec.sampling_defaults.stop_sequences, "spec.sampling_defaults.stop_sequences")
        max_positions = min(self._limits.max_positions or model.info.max_positions, model.info.max_positions)
        hyperparameters = spec.hyperparameters
        if examples.distillation is not None:
            hyperparameters = with_text_init(hyperparameters, examples.samples[DATASET][0].input)
        filled = fill(
            hyperparameters,
            task,
            examples.num_train,
            model.info,
            template,
            examples.labels,
            source_virtual_tokens=None if source is None else source.num_virtual_tokens,
            source_kind=None if source is None else source.kind,
            max_virtual_tokens=self._limits.max_virtual_tokens,
            max_positions=max_positions,
            on_gpu=self._on_gpu(model.info.id),
        )
        self._check_virtual_tokens(filled.num_virtual_tokens)
        check_gate(spec.publish.gate, examples.num_validation, judged_apart=filled.early_stop_patience > 0)
        check_minimum(spec.publish.gate, filled.metric)
        if source is not None:  # a reference such as `name@alias` becomes the version that it names now
            filled = filled.model_copy(update={"init": replace(filled.init, source=source.name)})
        check_init(filled.init, examples.labels, model.tokenizer)
        training = TrainingSpec(
            task=task,
            template=template,
            labels=examples.labels,
            hyperparameters=filled,
            distillation=examples.distillation,
            too_long=spec.too_long or TooLong.REFUSE,
            max_positions=max_positions,
        )
        if filled.num_virtual_tokens >= max_positions - 1:
            served = f"replicas serve sequences of {max_positions} positions"
            text = f"{filled.num_virtual_tokens} leave no room for text: {served}"
            raise InvalidInput.of("spec.hyperparameters.num_virtual_tokens", text)
        lengths = _check_sample(examples, encoder, training, model.info)
        return EffectiveSpec(
            base_model=model.info,
            training=training,
            validation_fraction=examples.validation_fraction,
            source_version=source.name if source is not None and source.digest else "",
            source_digest="" if source is None else source.digest,
            source_job="" if source is None else source.job_id,
            max_runtime_seconds=spec.max_runtime_seconds or self._limits.max_runtime_seconds,
            num_train=examples.num_train,
            num_validation=examples.num_validation,
            lengths=lengths,
            repetition=None if examples.distillation is not None else examples.facts.repetition,
        )


def _distilled(
    asked: Distillation, validation_fraction: float | None, facts: DatasetFacts, sample: Sequence[Example]
) -> _Examples:
    """A distillation's text and questions. Raises InvalidInput if the dataset has others."""
    if facts.task is not TaskKind.GENERATION:
        raise InvalidInput.of("spec.dataset", "of a distillation must have lines of input and output")
    distillation = filled_distillation(asked, facts.num_examples - 1, validation_fraction)
    text, *others = sorted(sample, key=lambda example: example.line)
    some = [text, *(example for example in others if example.line <= text.line + distillation.num_questions)]
    with moved(in_dataset(DATASET)):
        check_roles(some)
    num_held = distillation.num_held_out
    num_train = distillation.num_questions - num_held
    return _Examples(facts, (), {DATASET: tuple(some)}, num_train, num_held, distillation=distillation)


def _check_sample(
    examples: _Examples, encoder: InputEncoder, training: TrainingSpec, info: BaseModelInfo
) -> SampledLengths | None:
    """The lengths of the sampled training examples; None for a distillation. Raises InvalidInput with the lines of
    sampled examples that the template refuses, that have tokens which the model lacks, or that are too long with
    `TooLong.REFUSE`. Of very long examples only some are checked, the longest first; the worker checks all.
    """
    violations, lengths = Violations(), None
    if training.distillation is not None:
        text, *questions = examples.samples[DATASET]
        with moved(in_dataset(DATASET)):
            check_lengths(encoder, text.input, questions, training, info.max_positions)
        return None
    for which, sample in examples.samples.items():
        checked, num_chars = list[Example](), 0
        for example in sorted(sample, key=_num_chars, reverse=True):
            num_chars += _num_chars(example)
            if checked and num_chars > _SAMPLED_CHARS:
                break
            checked.append(example)
        checked.sort(key=lambda example: example.line)
        with violations.collected(), moved(in_dataset(which)):
            encoded = encode_dataset(checked, encoder, training, training.max_positions, vocab_size=info.vocab_size)
            if which == DATASET and len(encoded):
                lengths = _lengths(encoded)
    violations.raise_if_any()
    return lengths


def _lengths(encoded: EncodedDataset) -> SampledLengths:
    whole = encoded.input_lengths + encoded.target_lengths
    return SampledLengths(
        longest=int(whole.max()), mean=float(whole.mean()), mean_target=float(encoded.target_lengths.mean())
    )


def _num_chars(example: Example) -> int:
    contents = (message.content for message in example.messages)
    return sum(map(len, (example.input, example.output or "", example.label or "", *contents)))


def _default_fraction(num_examples: int) -> float:
    """A tenth of the examples, but at least one and at most `MAX_DEFAULT_VALIDATION_EXAMPLES`, because evaluations are
    frequent.
    """
    return max(1 / num_examples, min(DEFAULT_VALIDATION_FRACTION, MAX_DEFAULT_VALIDATION_EXAMPLES / num_examples))


def _template(spec: StoredSpec, task: TaskKind, tokenizer: Any) -> Template:
    """The caller's template with all defaults filled in; the format is that of the base model (`default_format`)."""
    template, own = spec.template or Template(), default_format(tokenizer)
    template = replace(template, format=template.format or own)
    if task is TaskKind.CHAT and template.format is not own:
        reason = "the examples are conversations and the base model has a chat template"
        if own is not TemplateFormat.CHAT:
            reason = "the base model has no chat template that can be used: conversations become text"
        raise InvalidInput.of("spec.template.format", f"must be {own.value}, since {reason}")
    if task is TaskKind.CHAT and own is TemplateFormat.CHAT and template.text not in ("", INPUT_FIELD):
        reason = "the base model's chat template renders conversations, and nothing else is written around a message"
        raise InvalidInput.of("spec.template.text", f"must be {INPUT_FIELD}, since {reason}; use template.system")
    return pinned(template.check("spec.template"), tokenizer)


def check_minimum(gate: PublishGate | None, metric: Metric) -> None:
    """Raises InvalidInput for a minimum that no prompt could reach, such as 90 where a share is measured."""
    bound = None if gate is None else gate.minimum_metric
    if bound is None:
        return
    name, most = metric.value.lower(), MOST.get(metric)
    if (most is not None and bound > most) or (most is None and bound < 0):
        limit = "is at least 0" if most is None else f"is at most {most:g}"
        raise InvalidInput.of(
            "spec.publish.gate.minimum_metric", f"can't be reached: it is {bound:g}, and {name} {limit}"
        )


def check_gate(gate: PublishGate | None, num_held_out: int, *, judged_apart: bool = False) -> None:
    """Raises InvalidInput if there are too few held-out examples to decide the gate's conditions.

    `judged_apart`: half of them only choose (`data.held_out`), because of an early stop.
    """
    needed = 2 * MIN_EXAMPLES - 1 if judged_apart else MIN_EXAMPLES
    if gate is not None and gate.has_conditions and num_held_out < needed:
        held_out = counted(num_held_out, "held-out example")
        why = " with early_stop_patience, which chooses by half of them" if judged_apart else ""
        few = f"{held_out} can't decide it; at least {needed} are needed{why}"
        advice = "give a validation dataset or a larger validation fraction, or leave the gate out"
        raise InvalidInput.of("spec.publish.gate", f"{few}: {advice}")
