"""Counts repeated and contradicting examples of a dataset. Repeated examples make the score too good.

Near-duplicates are inputs that differ from an earlier one only in case, punctuation and white space, or share at least
80 % of their runs of three words with it. The latter are found (`similar_texts`) in datasets of up to 20,000 different
inputs and 16 million characters, which takes 1.5 s, and only where numpy is installed: the light client may lack it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
import unicodedata
from collections import Counter
from dataclasses import dataclass
from typing import Any, ClassVar

from shared.text.counted import counted
from shared.text.label_notes import label_notes
from shared.values.datasets import MAX_LABELS
from shared.values.example import Example, target_of

MAX_COMPARED_EXAMPLES, MAX_COMPARED_CHARS = 20_000, 16_000_000
FEW_INPUTS_SHARE = 0.1
"""A note is given if the distinct inputs are fewer than this share of the examples."""
_NOT_A_WORD = re.compile(r"[\W_]+")


@dataclass(frozen=True)
class Repetition:
    """Counts over all examples of a dataset, training and held-out."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    num_examples: int
    num_distinct_inputs: int
    num_duplicates: int = 0
    """Examples equal to an earlier one in input and target."""
    num_near_duplicates: int = 0
    """Inputs nearly equal, but not equal, to an earlier one."""
    num_contradictions: int = 0
    """Examples whose input also occurs with another label (classification)."""
    first_contradiction: tuple[int, int] | None = None
    """Numbers of two contradicting examples, from 1."""
    label_notes: tuple[str, ...] = ()
    """Notes on labels that look the same or are probably misspelt (`label_notes`)."""

    def notes(self) -> list[str]:
        """Notes for the user, possibly none. They quote no example, but its label."""
        notes = list(self.label_notes)
        if self.num_duplicates:
            notes.append(f"{self._of_all(self.num_duplicates, 'repeats', 'repeat')} an earlier one exactly")
        if self.num_distinct_inputs < FEW_INPUTS_SHARE * self.num_examples:
            notes.append(
                f"the {self.num_examples} examples have only {counted(self.num_distinct_inputs, 'different input')}"
            )
        if self.num_near_duplicates:
            notes.append(f"{self._of_all(self.num_near_duplicates, 'has', 'have')} nearly the input of an earlier one")
        if self.num_contradictions:
            first = (
                f", for example the examples {' and '.join(map(str, self.first_contradiction))}"
                if self.first_contradiction
                else ""
            )
            notes.append(
                f"{self._of_all(self.num_contradictions, 'contradicts', 'contradict')} another: "
                f"one input, two labels{first}"
            )
        return notes

    def _of_all(self, number: int, one: str, several: str) -> str:
        return f"{number} of {counted(self.num_examples, 'example')} {one if number == 1 else several}"


class _Group:
    """The examples with the same input."""

    def __init__(self, first: int, label: str | None) -> None:
        self.first, self.label = first, label
        self.count, self.contradicts = 0, False


class RepetitionCounter:
    """Counts examples one by one and keeps digests, no texts. White space around texts is ignored."""

    def __init__(self) -> None:
        self._num_examples = self._num_chars = self._num_normal_twice = 0
        self._groups: dict[bytes, _Group] = {}
        self._whole = set[bytes]()
        self._normal = set[bytes]()
        self._shingles: list[Any] | None = [] if _has_numpy() else None
        """None: nothing to compare with, or too many inputs to compare."""
        self._labels = Counter[str]()
        self._first_contradiction: tuple[int, int] | None = None

    def add(self, example: Example) -> None:
        """Count an example."""
        self._num_examples += 1
        if example.label is not None and len(self._labels) <= MAX_LABELS:
            self._labels[example.label.strip()] += 1
        text, target = _input(example), target_of(example).strip()
        key = _digest(text)
        self._whole.add(_digest(key.hex() + target))
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = _Group(self._num_examples, example.label)
            self._compare_later(text)
        group.count += 1
        if group.label != example.label:
            group.contradicts = True
            self._first_contradiction = self._first_contradiction or (group.first, self._num_examples)

    @property
    def finds_similar(self) -> bool:
        """Whether similar inputs are found; else `num_near_duplicates` counts only inputs that have the same words."""
        return self._shingles is not None

    def result(self) -> Repetition:
        """The counts so far. Searches for similar inputs, which takes one or two seconds at most."""
        return Repetition(
            num_examples=self._num_examples,
            num_distinct_inputs=len(self._groups),
            num_duplicates=self._num_examples - len(self._whole),
            num_near_duplicates=self._num_normal_twice + self._num_similar(),
            num_contradictions=sum(group.count for group in self._groups.values() if group.contradicts),
            first_contradiction=self._first_contradiction,
            label_notes=tuple(label_notes(self._labels)),
        )

    def _compare_later(self, text: str) -> None:
        words = _NOT_A_WORD.sub(" ", unicodedata.normalize("NFC", text).casefold()).strip()
        if not words:  # only punctuation: nothing to compare
            return
        key = _digest(words)
        if key in self._normal:
            self._num_normal_twice += 1
            return
        self._normal.add(key)
        self._num_chars += len(words)
        if len(self._normal) > MAX_COMPARED_EXAMPLES or self._num_chars > MAX_COMPARED_CHARS:
            self._shingles = None
        if self._shingles is not None:
            from shared.text.similar_texts import shingles

            if (found := shingles(words)) is not None:
                self._shingles.append(found)

    def _num_similar(self) -> int:
        if not self._shingles:
            return 0
        from shared.text.similar_texts import num_similar

        return num_similar(self._shingles)


def _has_numpy() -> bool:
    return importlib.util.find_spec("numpy") is not None


def _input(example: Example) -> str:
    if not example.messages:
        return example.input.strip()
    return "\n".join(f"{turn.role}: {turn.content.strip()}" for turn in example.messages[:-1])


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()
