"""The contestants on a dataset: the untuned model in three ways, PEFT's methods, and ours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from benchmarks.quality.peft_recipes import RECIPES, Adapter, Start, train_adapter
from benchmarks.quality.sets import DataSet
from shared.model.base_model import BaseModel, load
from shared.model.options import ModelOptions
from shared.prompt.prefix import Prefix
from shared.text.template import INPUT_FIELD, InputEncoder, Message, Template, TemplateFormat, has_chat_template, pinned
from shared.values.enums import PrefixKind
from trainer_service.training.attention.packing import Row
from trainer_service.training.cohort import Cohort
from trainer_service.training.data.encoding import EncodedDataset, EncodedExample, encode_dataset
from trainer_service.training.events import Failed, Finished, TrainingTask
from trainer_service.training.recipe.defaults import fill, init_text
from trainer_service.training.spec import (
    Example,
    FilledHyperparameters,
    Hyperparameters,
    Init,
    InitMethod,
    TrainingSpec,
)

BARE, INSTRUCTED, FEW_SHOT = "bare", "instructed", "few-shot"
PEFT = {recipe.name: recipe for recipe in RECIPES}
OURS = {
    "ours": Hyperparameters(kind=PrefixKind.PROMPT),
    "ours, prefix": Hyperparameters(kind=PrefixKind.PREFIX),
}
NAMES = (BARE, INSTRUCTED, FEW_SHOT, *PEFT, *OURS)


class Arena:
    """One base model and the state that all its contestants share."""

    def __init__(
        self, base: BaseModel, source: str, template_format: TemplateFormat | None, few_shot_tokens: int
    ) -> None:
        self.base, self._source, self._few_shot_tokens = base, source, few_shot_tokens
        default = TemplateFormat.CHAT if has_chat_template(base.tokenizer) else TemplateFormat.TEXT
        self.format = template_format or default
        self.template = pinned(Template(format=self.format), base.tokenizer)
        self.cohort = Cohort(base)

    def spec(
        self, data: DataSet, num_train: int, request: Hyperparameters, template: Template | None = None
    ) -> TrainingSpec:
        used = template or self.template
        filled = fill(request, data.task, num_train, self.base.info, used, data.labels)
        return TrainingSpec(task=data.task, template=used, labels=data.labels, hyperparameters=filled)

    def encode(self, data: DataSet, examples: tuple[Example, ...], template: Template | None = None) -> EncodedDataset:
        used = template or self.template
        spec = self.spec(data, len(examples), Hyperparameters(num_virtual_tokens=1), used)
        return encode_dataset(examples, InputEncoder(self.base.tokenizer, used), spec, self.base.info.max_positions)

    def test(self, data: DataSet, template: Template | None = None) -> EncodedDataset:
        return self.encode(data, tuple(row.example for row in data.test), template)

    def instructed(self, data: DataSet) -> Template:
        """Puts the text from which tuning starts above the input, as a person would."""
        text = f"{init_text(data.task, self.template, data.labels)}\n\n{INPUT_FIELD}"
        return pinned(Template(text=text, format=self.format), self.base.tokenizer)

    def few_shot(self, data: DataSet, train: tuple[Example, ...]) -> tuple[EncodedDataset, int]:
        """The test set after as many training examples as fit into `few_shot_tokens`, and their number."""
        instruction = init_text(data.task, self.template, data.labels)
        shown = 0
        encoder = InputEncoder(self.base.tokenizer, self.template)
        while (
            shown < len(train)
            and len(self._shots(encoder, instruction, train[: shown + 1], "")) <= self._few_shot_tokens
        ):
            shown += 1
        plain = self.test(data)
        inputs = [tuple(self._shots(encoder, instruction, train[:shown], row.example.input)) for row in plain.examples]
        rows = zip(plain.examples, inputs, strict=True)
        examples = tuple(EncodedExample(row.example, ids, row.target_ids, row.label_index) for row, ids in rows)
        return EncodedDataset(examples, plain.label_ids), shown

    def _shots(self, encoder: InputEncoder, instruction: str, shots: tuple[Example, ...], text: str) -> list[int]:
        pairs = [(shot.input, shot.label if shot.label is not None else shot.output or "") for shot in shots]
        if self.format is TemplateFormat.CHAT:
            roles = zip(["user", "assistant"] * len(pairs), [text for pair in pairs for text in pair], strict=True)
            turns = [Message(role=role, content=content) for role, content in [*roles, ("user", text)]]
            turns[0] = replace(turns[0], content=f"{instruction}\n\n{turns[0].content}")
            return encoder.encode_messages(turns)
        blocks = [
            instruction,
            *(f"Input: {source}\nAnswer: {answer}" for source, answer in pairs),
            f"Input: {text}\nAnswer:",
        ]
        return encoder.encode_input("\n\n".join(blocks))

    def train_ours(
        self, data: DataSet, train_examples: tuple[Example, ...], held: tuple[Example, ...], request: Hyperparameters
    ) -> tuple[Prefix, FilledHyperparameters]:
        """Trains with the recipe. Returns the prefix that the service would publish, and its hyperparameters."""
        spec = self.spec(data, len(train_examples), request)
        return train(self.cohort, spec, train_examples, held), spec.hyperparameters

    def train_peft(self, name: str, data: DataSet, train: tuple[Example, ...], seed: int) -> tuple[Adapter, int, int]:
        """Trains on our recipe's batches, in a copy of the model that has none of our replaced modules. Returns also
        steps and batch size.
        """
        hyper = self.spec(data, len(train), Hyperparameters()).hyperparameters
        start = Start(
            load(self._source, ModelOptions(dtype=dtype_name(self.base))),
            self._source,
            init_text(data.task, self.template, data.labels),
            self.format is TemplateFormat.CHAT,
        )
        rows = _training_rows(self.encode(data, train))
        steps, batch = hyper.num_steps, hyper.batch_size
        return train_adapter(PEFT[name], start, rows, seed, steps, batch), steps, batch


def train(cohort: Cohort, spec: TrainingSpec, examples: Sequence[Example], held: Sequence[Example]) -> Prefix:
    """The prefix that a job would publish."""
    cohort.add(TrainingTask("quality", 1, spec, examples, held))
    while not cohort.is_idle:
        for event in cohort.step():
            if isinstance(event, Failed):
                raise SystemExit(f"training failed: {event.message}")
            if isinstance(event, Finished):
                return event.result.prefix
    raise SystemExit("training ended without a result")


def _training_rows(data: EncodedDataset) -> Sequence[Row]:
    return [
        Row(example.input_ids, data.label_ids[example.label_index] if data.label_ids else example.target_ids)
        for example in data.examples
    ]


def dtype_name(base: BaseModel) -> Any:
    """As `load` names it."""
    return str(base.dtype).removeprefix("torch.")


def variant(text: str, seed: int) -> Hyperparameters:
    """Parses `TOKENS:RATE[:STEPS[:INIT[:KIND]]]`, such as `100:1e-2:320:LABELS` or `50:5e-3:::PREFIX`."""
    tokens, rate, *rest = text.split(":")
    steps = int(rest[0]) if rest and rest[0] else None
    init = Init(method=InitMethod(rest[1])) if rest[1:] and rest[1] else None
    kind = PrefixKind(rest[2]) if rest[2:] else PrefixKind.PROMPT
    return Hyperparameters(
        num_virtual_tokens=int(tokens), learning_rate=float(rate), num_steps=steps, init=init, seed=seed, kind=kind
    )
