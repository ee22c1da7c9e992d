"""Counts repeated and contradicting examples of a dataset. Repeated examples make the score too good.

Near-duplicates are inputs that differ from an earlier one only in case, punctuation and white space, or share at least
80 % of their runs of three words with it. The latter are found (`similar_texts`) in datasets of up to 20,000 different
inputs and 16 million characters, which takes 1.5 s, and only where numpy is installed: the light client may lack it.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from shared.text.blank import without_invisible
from shared.text.counted import counted
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


MAX_LABELS = 200
"""With more labels, none are compared: most are then rare."""
_RARE_SHARE, _CLOSE, _MIN_CHARS, _SHOWN = 0.25, 0.8, 4, 5
_DIGITS = re.compile(r"\d+")
_WHOLE_NUMBER = re.compile(r"^(-?\d+)\.0+$")


def label_notes(counts: Mapping[str, int]) -> list[str]:
    """Notes on labels that look the same, however frequent they are, and on `close_labels`; empty if there are none."""
    if len(counts) > MAX_LABELS:
        return []
    seen: dict[str, str] = {}
    twins: dict[str, str] = {}
    for label in sorted(counts, key=lambda label: -counts[label]):
        if (same := seen.setdefault(look(label), label)) != label:
            twins[label] = same
    rest = {label: count for label, count in counts.items() if label not in twins}
    if not twins:
        return close_labels(rest)
    named = [f"{label!a} ({counts[label]}) and {same!a} ({counts[same]})" for label, same in twins.items()]
    more = f" and {len(named) - _SHOWN} more" if len(named) > _SHOWN else ""
    note = f"labels that look the same but are different, with their examples: {', '.join(named[:_SHOWN])}{more}"
    return [f"{note}. Write each label in one way", *close_labels(rest)]


def look(label: str) -> str:
    """A label without what can't be seen: invisible characters, the Unicode form of letters, repeated space; and the
    decimals of a whole number, which programs add to a column with empty cells.
    """
    shown = without_invisible(label)
    return _WHOLE_NUMBER.sub(r"\1", " ".join(unicodedata.normalize("NFC", shown).split()))


def close_labels(counts: Mapping[str, int]) -> list[str]:
    """A note on rare labels that are close to a frequent one, with their counts; empty if there are none.

    Labels are close if they differ in case, space or Unicode form only, or in a few letters but not in the first one or
    in a digit: "2 stars" and "3 stars" are different labels, and so are "complete" and "incomplete".
    """
    if len(counts) > MAX_LABELS:
        return []
    found: dict[str, str] = {}
    for rare in sorted(counts, key=lambda label: -counts[label]):
        meant = [label for label in counts if counts[rare] <= _RARE_SHARE * counts[label] and _is_close(rare, label)]
        if meant:
            found[rare] = max(meant, key=lambda label: counts[label])
    if not found:
        return []
    named = [f"{rare!r} ({counts[rare]}) and {meant!r} ({counts[meant]})" for rare, meant in found.items()]
    more = f" and {len(named) - _SHOWN} more" if len(named) > _SHOWN else ""
    right = ",".join(f'"{label}"' if "," in label else label for label in counts if label not in found)
    return [
        f"labels that differ by a few letters, with their examples: {', '.join(named[:_SHOWN])}{more}. "
        f"If these are misspellings, `--labels {right}` refuses them and names their lines"
    ]


def _is_close(one: str, other: str) -> bool:
    one, other = (" ".join(unicodedata.normalize("NFKC", label).casefold().split()) for label in (one, other))
    if one == other:
        return True
    if min(len(one), len(other)) < _MIN_CHARS or one[0] != other[0]:
        return False
    if _DIGITS.findall(one) != _DIGITS.findall(other):
        return False
    return difflib.SequenceMatcher(None, one, other).ratio() >= _CLOSE
