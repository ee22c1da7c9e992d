"""Baselines without training: held-out examples written for the frozen model in other ways.

    bare        the input alone, as in a request to the inference service without a prompt
    instructed  a plain instruction before the rendered input, as a message in the model's chat template
    few-shot    the same after as many training examples as fit, as earlier turns
                (Brown et al. 2020, arXiv:2005.14165)

Without a chat template, the last two are written as paragraphs. If a baseline can't be written (the chat template
rejects a role, an example is too long), InvalidInput is raised and that baseline is not measured.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from shared.errors import InvalidInput
from shared.text.template import (
    INPUT_FIELD,
    InputEncoder,
    Message,
    Template,
    TemplateFormat,
    bare_template,
    conversation_text,
    default_format,
    has_chat_template,
    pinned,
)
from shared.values.example import target_of
from trainer_service.training.data.encoding import EncodedDataset, EncodedExample
from trainer_service.training.data.token_rows import encode_input
from trainer_service.training.recipe.defaults import init_text
from trainer_service.training.spec import Example, InitMethod, TaskKind, TrainingSpec

MAX_SHOT_CANDIDATES = 4096
MAX_SHOT_TOKENS = 1024
"""The most tokens of training examples in a few-shot input."""
_TURN_TOKENS = 8
"""Approximate number of tokens that a chat template adds to a message."""
_MAX_LONG_SHOTS = 256
"""After this many training examples that would not even fit alone, no further ones are tokenized."""


@dataclass(frozen=True)
class Baseline:
    """Held-out examples encoded for one baseline."""

    data: EncodedDataset
    end_token_id: int | None
    """The token that ends a generated answer."""
    num_shots: int = 0


def instruction(spec: TrainingSpec) -> str:
    """The instruction of the baselines: the user's init text if there is one, else the recipe's for this task."""
    init = spec.hyperparameters.init
    own = init.text.strip() if init.method is InitMethod.TEXT else ""
    by_recipe = init_text(spec.task, spec.template, spec.labels)
    # without the template's text, which is written around the input anyway
    return own if own and own != by_recipe else init_text(spec.task, Template(), spec.labels, len(spec.labels))


def bare(spec: TrainingSpec, tokenizer: Any, examples: Sequence[Example]) -> Baseline:
    """The token ids of a request to the bare model: in the model's chat template, else the plain input."""
    encoder = InputEncoder(tokenizer, bare_template(None, default_format(tokenizer)))
    return _encoded(encoder, spec, examples, lambda example: encode_input(encoder, example))


def instructed(spec: TrainingSpec, tokenizer: Any, examples: Sequence[Example], max_positions: int) -> Baseline:
    """The instruction before each input. Raises InvalidInput if an example doesn't fit or can't be written."""
    asking = _Asking(spec, tokenizer)
    return _fitting(asking, _encoded(asking.encoder, spec, examples, asking.ids), max_positions)


def few_shot(
    spec: TrainingSpec, tokenizer: Any, examples: Sequence[Example], train: Sequence[Example], max_positions: int
) -> Baseline:
    """The instruction and training examples before each input.

    The shots are drawn with the job's seed, from each label in turn. Raises InvalidInput if not even one fits.
    """
    asking = _Asking(spec, tokenizer)
    longest = max(len(asking.ids(example)) + len(asking.target(example)) for example in examples)
    shots = _shots(asking, train, min(MAX_SHOT_TOKENS, max_positions - longest), spec.hyperparameters.seed)
    while shots:
        used = shots
        found = _encoded(asking.encoder, spec, examples, lambda example: asking.ids(example, used))  # noqa: B023
        try:
            return _fitting(asking, found, max_positions, len(shots))
        except InvalidInput:
            shots = shots[: len(shots) // 2]
    raise InvalidInput.of("dataset", "no training example fits beside a held-out one")


class _Asking:
    """Writes inputs with an instruction and, optionally, training examples."""

    def __init__(self, spec: TrainingSpec, tokenizer: Any) -> None:
        own = spec.template
        self._template, self._instruction = own, instruction(spec)
        self._is_chat = has_chat_template(tokenizer)
        if self._is_chat:
            chat = replace(own, text=INPUT_FIELD, format=TemplateFormat.CHAT, system_override=True)
            self.encoder = InputEncoder(tokenizer, pinned(chat, tokenizer))
        else:
            self.encoder = InputEncoder(tokenizer, Template(text="{input}\nAnswer:", rendering=4))

    def ids(self, example: Example, shots: Sequence[Example] = ()) -> list[int]:
        turns = [
            turn
            for shot in shots
            for turn in (*self._question(shot), Message(role="assistant", content=target_of(shot)))
        ]
        turns += self._question(example)
        if self._is_chat:
            return self.encoder.encode_messages(self._with_instruction(turns))
        paragraphs = list[str]()
        for shot in shots:
            paragraphs.append(f"{conversation_text(self._question(shot))}\nAnswer: {target_of(shot)}")
        paragraphs.append(conversation_text(self._question(example)))
        return self.encoder.encode_input("\n\n".join([self._instruction, *paragraphs]))

    def target(self, example: Example) -> list[int]:
        return self.encoder.encode_target(target_of(example))

    def _question(self, example: Example) -> list[Message]:
        if example.messages:
            return list(example.messages[:-1])
        text = example.input if self._template.text == INPUT_FIELD else self._template.render(example.input).strip()
        return [Message(role="user", content=text)]

    def _with_instruction(self, turns: list[Message]) -> list[Message]:
        """Add the instruction to the first user message, since not every chat template accepts a system message.

        Only the last system message, the example's own, is kept.
        """
        system = [turn for turn in turns if turn.role == "system"][-1:]
        rest = [turn for turn in turns if turn.role != "system"]
        first = next((index for index, turn in enumerate(rest) if turn.role == "user"), None)
        if first is not None:
            rest[first] = Message(role="user", content=f"{self._instruction}\n\n{rest[first].content}")
        return [*system, *rest]


def _shots(asking: _Asking, train: Sequence[Example], room: int, seed: int) -> list[Example]:
    """As many shots as fit into `room` tokens, from each label in turn. Examples that would not even fit alone are
    passed over.

    They are chosen from at most MAX_SHOT_CANDIDATES examples, so that few texts are read.
    """
    order = list(range(len(train)))
    random.Random(seed).shuffle(order)
    by_label: dict[str, list[Example]] = {}
    for index in order[:MAX_SHOT_CANDIDATES]:
        by_label.setdefault(train[index].label or "", []).append(train[index])
    queues, shots = [list(reversed(some)) for some in by_label.values()], list[Example]()
    left, num_long = room, 0
    while any(queues) and num_long < _MAX_LONG_SHOTS:
        for queue in queues:
            while queue and (num_tokens := _num_tokens(asking, queue[-1])) > room and num_long < _MAX_LONG_SHOTS:
                queue.pop()
                num_long += 1
            if not queue:
                continue
            left -= num_tokens
            if left < 0:
                return shots
            shots.append(queue.pop())
    return shots


def _num_tokens(asking: _Asking, shot: Example) -> int:
    """About the tokens that an example takes as two earlier turns."""
    text = input_text(shot) + target_of(shot)
    return len(asking.encoder.tokenizer(text, add_special_tokens=False)["input_ids"]) + 2 * _TURN_TOKENS


def input_text(example: Example) -> str:
    """The text of an example's input, without a template."""
    return conversation_text(example.messages[:-1]) if example.messages else example.input


def _encoded(
    encoder: InputEncoder, spec: TrainingSpec, examples: Sequence[Example], ids: Callable[[Example], Sequence[int]]
) -> Baseline:
    labels = {label: index for index, label in enumerate(spec.labels)}
    rows = [
        EncodedExample(
            example,
            tuple(ids(example)),
            tuple(encoder.encode_target(target_of(example))),
            labels.get(example.label or "", -1),
        )
        for example in examples
    ]
    candidates = encoder.encode_candidates(spec.labels, "labels") if spec.task is TaskKind.CLASSIFICATION else ()
    return Baseline(EncodedDataset(tuple(rows), candidates), encoder.end_token_id)


def _fitting(asking: _Asking, found: Baseline, max_positions: int, num_shots: int = 0) -> Baseline:
    if max(len(row.input_ids) + len(row.target_ids) for row in found.data.examples) > max_positions:
        raise InvalidInput.of("dataset", "a held-out example doesn't fit into the model's context with an instruction")
    return Baseline(found.data, found.end_token_id, num_shots)
