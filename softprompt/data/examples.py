"""Conversion of rows of any layout into the one form that the services accept."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from shared.text.blank import SURROUNDINGS, is_blank
from shared.text.label_notes import look
from softprompt.data.layout import Layout, Layouts
from softprompt.data.messages import Turns, is_written_turns, list_of, turns_of
from softprompt.data.problems import Unusable
from softprompt.data.values import is_missing, shown, text_of
from softprompt.types.data import Data

Fields = dict[str, Any]
"""An example as it is sent: {input, output}, {input, label} or {messages}."""


def line_of(example: Fields) -> bytes:
    """The line of a dataset, without its end."""
    return json.dumps(example, ensure_ascii=False).encode()


class ExampleReader:
    """Converts rows. The first valid row decides the kind of all examples. Counts what it changes and drops."""

    def __init__(self, data: Data, labels: Sequence[str]) -> None:
        self._labels, self._drop_extra = frozenset(labels), data.drop_extra
        self._labels_by_look = {look(label).casefold(): label for label in labels}
        self.layouts = Layouts(data)
        self.advice = ""
        self._kind = ""
        self._sentences: Counter[str] = Counter()
        self._dropped: Counter[str] = Counter()
        self._num_cut = self._num_unlearned = self._num_converted = self._num_stripped = 0

    def read(self, row: Mapping[str, Any]) -> Fields | None:
        """The example of a row; None if all its messages have weight 0. Raises Unusable."""
        layout = self.layouts.of(row)
        example = self._conversation(row, layout) if layout.messages else self._pair(row, layout)
        if example is not None:
            kind = "chat" if "messages" in example else "classification" if "label" in example else "generation"
            if self._kind and kind != self._kind:
                raise Unusable(f"is {kind}, earlier examples are {self._kind}")
            self._kind = kind
            self._sentences[layout.sentence()] += 1
        self._dropped.update(name for name in layout.extra if not is_missing(row[name]))
        return example

    def report(self) -> list[str]:
        """What was changed or dropped, as sentences."""
        sentences = [f"read as {sentence}" for sentence in self._sentences if sentence]
        if self._dropped:
            counts = [f"{name} ({count} values)" for name, count in self._dropped.items()]
            sentences.append(f"dropped: {', '.join(counts)}")
        changes = {
            "numbers, booleans and dates written as text": self._num_converted,
            "labels without the space around them": self._num_stripped,
            "conversations that end with their last message of weight 1": self._num_cut,
            "conversations dropped because no message has weight 1": self._num_unlearned,
        }
        return sentences + [f"{sentence}: {count}" for sentence, count in changes.items() if count]

    def _pair(self, row: Mapping[str, Any], layout: Layout) -> Fields | None:
        source = row[layout.input]
        target = "label" if layout.label else "output"
        value = row[layout.label or layout.output]
        if layout.output and is_written_turns(source) and is_written_turns(value):  # TRL's in a table
            source, value = turns_of(source, layout.input), turns_of(value, layout.output)
        are_turns = is_list(source) and all(isinstance(turn, Mapping) for turn in source)
        if are_turns and layout.output and not layout.instruction:  # TRL's prompt and completion, each a list of turns
            answer = list(value) if is_list(value) else [{"role": "assistant", "content": value}]
            return self._messages([*source, *answer], layout.input)
        if layout.instruction:
            instruction = self._text(row[layout.instruction], layout.instruction)
            text = instructed(instruction, "" if is_missing(source) else self._text(source, layout.input))
        else:
            text = self._text(source, layout.input)
        if is_blank(text):
            raise Unusable("is empty", layout.input, "input is empty")
        answer_text = self._text(value, layout.label or layout.output)
        if is_blank(answer_text):
            raise Unusable("is empty", layout.label or layout.output, "target is empty")
        if layout.label:
            answer_text = self._label(answer_text, layout.label)
        return {"input": text, target: answer_text}

    def _label(self, label: str, column: str) -> str:
        stripped = label.strip(SURROUNDINGS)
        self._num_stripped += stripped != label
        if self._labels and stripped not in self._labels:
            if (parts := [part.strip() for part in stripped.split(",")])[1:] and self._labels.issuperset(parts):
                self.advice = f"a label with a comma is put in quotes: --labels '\"{stripped}\",...'"
            meant = self._labels_by_look.get(look(stripped).casefold())
            written = shown if meant is None or look(meant) != look(stripped) else _as_ascii  # they look the same
            suggestion = "" if meant is None else f"; do you mean {written(meant)}?"
            reason = f"{written(stripped)} is not one of the allowed labels{suggestion}"
            raise Unusable(reason, column, f"label {stripped}")
        return stripped

    def _conversation(self, row: Mapping[str, Any], layout: Layout) -> Fields | None:
        value = row[layout.messages]
        return self._messages(with_system(value, row[layout.system] if layout.system else None), layout.messages)

    def _messages(self, value: Any, part: str) -> Fields | None:
        if is_missing(value):
            raise Unusable("is missing", part)
        turns = Turns(self._drop_extra)
        try:
            messages = turns.read(value, part)
        except Unusable as error:
            if error.kind.startswith("turn keys"):
                self.layouts.fix["--drop-extra"] = ""
            raise
        self._dropped.update(f"{key} of a turn" for key in turns.dropped)
        self._num_cut += turns.was_cut
        self._num_unlearned += messages is None
        return None if messages is None else {"messages": messages}

    def _text(self, value: Any, part: str) -> str:
        self._num_converted += not isinstance(value, str) and not is_missing(value)
        return text_of(value, part)


def _as_ascii(label: str) -> str:
    return shown(label, 200, ascii)


def instructed(instruction: str, context: str) -> str:
    """Alpaca's instruction and input as one text."""
    return f"{instruction}\n\n{context}" if context.strip() else instruction


def with_system(turns: Any, system: Any) -> Any:
    """A conversation with ShareGPT's system column as its first message, if that has a text."""
    if is_missing(system) or (isinstance(system, str) and not system.strip()):
        return turns
    found = list_of(turns)
    return [{"role": "system", "content": system}, *found] if isinstance(found, list) else turns


def is_list(value: Any) -> bool:
    """Whether the value is a list, a tuple, or an array of one dimension."""
    return isinstance(value, list | tuple) or (hasattr(value, "tolist") and getattr(value, "ndim", 0) == 1)
