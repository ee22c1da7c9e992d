"""Datasets of examples: strict parsing, checks, the held-out split, overlap between training and held-out data.

A dataset is JSON Lines in UTF-8. Every line is one example, all of the same kind:

    {"input": "...", "output": "..."}                                   generation
    {"input": "...", "label": "..."}                                    classification
    {"messages": [{"role": "user", "content": "..."}, ..., {"role": "assistant", "content": "..."}]}      chat

Blank lines are skipped but counted, so that `line N` matches an editor's line numbers. Needs no tokenizer and no torch:
the service checks a dataset when a job is created, long before a worker reads it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from shared.errors import FieldViolation, InvalidInput
from shared.json_keys import no_constant, unique_keys
from shared.location import Location
from shared.text.blank import SURROUNDINGS, is_blank, is_unicode
from shared.values.datasets import MAX_LABELS, MAX_LINE_BYTES
from shared.values.message import ROLES, Message
from trainer_service.training.data.encoding import EncodedDataset, encode_dataset
from trainer_service.training.data.example_lines import stored_example
from trainer_service.training.data.split import count_overlap, split_validation
from trainer_service.training.spec import Example, TaskKind

__all__ = [
    "DatasetLimits",
    "EncodedDataset",
    "ParsedDataset",
    "count_overlap",
    "encode_dataset",
    "parse_examples",
    "split_validation",
    "stored_examples",
]

MAX_LABEL_CHARS = 200
_MAX_REPORTED, _MAX_PLACES, _MAX_KINDS = 20, 3, 200
_Problem = tuple[tuple[str | int, ...], str]
"""A path in an example and what is wrong there."""
_VARIABLE = re.compile(r"[:;(]")
_KEYS = {
    TaskKind.GENERATION: frozenset({"input", "output"}),
    TaskKind.CLASSIFICATION: frozenset({"input", "label"}),
    TaskKind.CHAT: frozenset({"messages"}),
}


@dataclass(frozen=True)
class DatasetLimits:
    """Limits that keep one dataset from exhausting the service's memory."""

    max_line_bytes: int = MAX_LINE_BYTES
    max_examples: int = 1_000_000


@dataclass(frozen=True)
class ParsedDataset:
    """`labels`: the given label set, else the labels in order of first appearance (classification only)."""

    examples: tuple[Example, ...]
    task: TaskKind
    labels: tuple[str, ...]


def parse_examples(
    lines: Iterable[bytes | str],
    labels: Sequence[str] = (),
    limits: DatasetLimits | None = None,
    *,
    quote: bool = True,
    visit: Callable[[Example], None] | None = None,
) -> ParsedDataset:
    """Read JSON Lines. Raises InvalidInput naming lines (`line 7`), up to three for each kind of mistake, with counts.

    `quote` False: errors say where a line is wrong and what was expected, without quoting its content. `visit` is
    called with each example instead of keeping it; the result then has no examples.
    """
    checker = _Checker(labels, quote, visit)
    limits = limits or DatasetLimits()
    for number, line in enumerate(lines, start=1):
        try:
            example = _parse_line(line, number, limits, quote)
        except _Malformed as error:
            checker.report(Location(error.path, row=number), error.reason)
            continue
        if example is not None:
            checker.add(example)
        if checker.num_examples > limits.max_examples:
            raise InvalidInput.of("dataset", f"more than {limits.max_examples} examples; line {number} is one too many")
    return checker.finish()


def stored_examples(lines: Iterable[bytes]) -> tuple[Example, ...]:
    """The examples of a stored dataset. They were checked when it was stored, and are not checked again."""
    return tuple(stored_example(line, number) for number, line in enumerate(lines, start=1) if line.strip())


class _Malformed(Exception):
    def __init__(self, reason: str, *path: str | int) -> None:
        self.reason, self.path = reason, path


class _Checker:
    """Collects examples and their mistakes."""

    def __init__(self, labels: Sequence[str], quote: bool, visit: Callable[[Example], None] | None) -> None:
        self._quote = quote
        self.num_examples = 0
        self._given = tuple(labels)
        self._allowed = frozenset(labels)
        self._seen_labels: dict[str, None] = {}
        self._task: TaskKind | None = None
        self._examples: list[Example] = []
        self._visit = visit or self._examples.append
        self._violations: list[FieldViolation] = []
        self._counts: dict[str, int] = {}
        """Mistakes by kind. A kind is the beginning of the reason, before the part that varies from line to line."""
        self._last: dict[str, int] = {}
        """The index of each kind's last violation."""
        check_labels(self._given)

    def report(self, place: Location, reason: str) -> None:
        kind = _VARIABLE.split(reason, maxsplit=1)[0]
        if kind not in self._counts and len(self._counts) >= _MAX_KINDS:
            kind = ""
        count = self._counts[kind] = self._counts.get(kind, 0) + 1
        if kind and count <= _MAX_PLACES and len(self._violations) < _MAX_REPORTED:
            self._last[kind] = len(self._violations)
            self._violations.append(FieldViolation(place, reason))

    def add(self, example: Example) -> None:
        task, place = example.task, Location(row=example.line)
        if task is None:
            self.report(place, "must have either input and output, or input and label, or messages")
            return
        if self._task is None:
            self._task = task
        elif task is not self._task:
            self.report(place, f"is {task.value.lower()}, earlier examples are {self._task.value.lower()}")
            return
        for path, reason in _problems(example, task, self._allowed, self._quote):
            self.report(replace(place, path=path), reason)
        if example.label is not None:
            self._seen_labels[example.label] = None
            if not self._given and len(self._seen_labels) > MAX_LABELS:
                raise InvalidInput.of(place / "label", f"more than {MAX_LABELS} different labels: is this generation?")
        self.num_examples += 1
        self._visit(example)

    def finish(self) -> ParsedDataset:
        if self._violations:
            raise InvalidInput(self._summary())
        if self._task is None:
            raise InvalidInput.of("dataset", "has no examples")
        if self._given and self._task is not TaskKind.CLASSIFICATION:
            raise InvalidInput.of(
                "labels", f"a label set needs examples of input and label; these are {self._task.value.lower()}"
            )
        labels = self._given or tuple(self._seen_labels)
        if self._task is TaskKind.CLASSIFICATION and len(labels) < 2:
            only = repr(labels[0]) if self._quote else "one"
            raise InvalidInput.of("labels", f"classification needs at least two labels; there is only {only}")
        return ParsedDataset(tuple(self._examples), self._task, labels)

    def _summary(self) -> list[FieldViolation]:
        """The reported violations; the last one of each kind says how many more there are."""
        found = list(self._violations)
        for kind, index in self._last.items():
            shown = min(self._counts[kind], _MAX_PLACES)
            if more := self._counts[kind] - shown:
                text = f"{found[index].description} (and {more} more like this)"
                found[index] = replace(found[index], description=text)
        if others := sum(count for kind, count in self._counts.items() if kind not in self._last):
            found.append(FieldViolation("dataset", f"has {others} more mistakes of other kinds"))
        return found


def check_labels(labels: Sequence[str]) -> None:
    """Raises InvalidInput for a label set that can't be trained: too many, empty or repeated labels."""
    if len(labels) > MAX_LABELS:
        raise InvalidInput.of("labels", f"{len(labels)} labels; at most {MAX_LABELS} are allowed")
    seen = set[str]()
    for index, label in enumerate(labels):
        if reason := _label_problem(label):
            raise InvalidInput.of(f"labels[{index}]", reason)
        if label in seen:
            raise InvalidInput.of(f"labels[{index}]", f"{label!r} is repeated")
        seen.add(label)


def _label_problem(label: str, quote: bool = True) -> str:
    if is_blank(label):
        return "is empty"
    if label != label.strip(SURROUNDINGS):
        return f"{_quoted(label, quote)}has white space or invisible characters around it"
    return f"has {len(label)} characters; at most {MAX_LABEL_CHARS} are allowed" if len(label) > MAX_LABEL_CHARS else ""


def _quoted(text: str, quote: bool) -> str:
    return f"{text[:40]!r} " if quote else ""


def _problems(example: Example, task: TaskKind, allowed: frozenset[str], quote: bool) -> Iterable[_Problem]:
    if task is TaskKind.CHAT:
        yield from _message_problems(example.messages, quote)
        return
    if is_blank(example.input):
        yield ("input",), "is empty"
    elif not is_unicode(example.input):
        yield ("input",), "is not valid Unicode (a lone surrogate)"
    target, part = (example.output, "output") if task is TaskKind.GENERATION else (example.label, "label")
    if is_blank(target or ""):
        yield (part,), "is empty"
    elif not is_unicode(target or ""):
        yield (part,), "is not valid Unicode (a lone surrogate)"
    elif task is TaskKind.CLASSIFICATION:
        if allowed and target not in allowed:
            yield (part,), f"{_quoted(target or '', quote)}is not in the label set"
        elif reason := _label_problem(target or "", quote):
            yield (part,), reason


def _message_problems(messages: Sequence[Message], quote: bool) -> Iterable[_Problem]:
    if len(messages) < 2 or messages[-1].role != "assistant":
        yield ("messages",), "must end with the assistant's message that is to be learned, after at least one other"
    for index, message in enumerate(messages):
        if message.role not in ROLES:
            given = f", not {message.role[:40]!r}" if quote else ""
            yield ("messages", index, "role"), f"must be one of {', '.join(ROLES)}{given}"
        if is_blank(message.content):
            yield ("messages", index, "content"), "is empty"
        elif not is_unicode(message.content):
            yield ("messages", index, "content"), "is not valid Unicode (a lone surrogate)"


def _parse_line(line: bytes | str, number: int, limits: DatasetLimits, quote: bool) -> Example | None:
    """None for a blank line."""
    if len(line) > limits.max_line_bytes:
        raise _Malformed(f"is longer than {limits.max_line_bytes} bytes")
    if isinstance(line, bytes):
        if b"\0" in line:
            raise _Malformed("has NUL bytes, as UTF-16 has; it must be UTF-8")
        try:
            # A byte order mark may be on every line, because files may have been joined.
            line = line.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise _Malformed(f"is not UTF-8 (byte {error.start + 1})") from None
    if not line.strip():
        return None
    try:
        value = json.loads(line, object_pairs_hook=unique_keys, parse_constant=no_constant)
    except json.JSONDecodeError as error:
        raise _Malformed(
            f"is not JSON: {error.msg.removesuffix(' at')} at column {error.colno}"
            if quote
            else f"is not JSON at column {error.colno}"
        ) from None
    except RecursionError:
        raise _Malformed("is nested too deeply") from None
    except ValueError as error:
        raise _Malformed(f"is not JSON: {str(error)[:100]}" if quote else "is not JSON") from None
    if not isinstance(value, dict):
        raise _Malformed("must be a JSON object")
    if not any(value.keys() == keys for keys in _KEYS.values()):
        shown = ", ".join(repr(key[:40]) for key in islice(value, 6)) or "nothing"
        found = f"; it has {shown}" if quote else ""
        raise _Malformed(f"must have exactly input and output, input and label, or messages{found}")
    if "messages" in value:
        return Example(line=number, messages=_messages(value["messages"]))
    for key, part in value.items():
        if not isinstance(part, str):
            raise _Malformed(f"must be a string, not {_json_type(part)}", key)
    return Example(line=number, **value)


def _messages(value: object) -> tuple[Message, ...]:
    if not isinstance(value, list):
        raise _Malformed(f"must be a list, not {_json_type(value)}", "messages")
    for index, turn in enumerate(value):
        if (
            not isinstance(turn, dict)
            or turn.keys() != {"role", "content"}
            or not all(isinstance(part, str) for part in turn.values())
        ):
            raise _Malformed("must have exactly role and content, both strings", "messages", index)
    return tuple(Message(**turn) for turn in value)


def _json_type(value: object) -> str:
    names: dict[type, str] = {
        dict: "an object",
        list: "a list",
        bool: "a boolean",
        int: "a number",
        float: "a number",
        type(None): "null",
    }
    return names.get(type(value), "a string")
