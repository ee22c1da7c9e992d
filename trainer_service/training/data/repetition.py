"""Counts repeated and contradicting examples of a dataset. Repeated examples make the score too good.

Near-duplicates are inputs that differ from an earlier one only in case, punctuation and white space, or share at least
80 % of their runs of three words with it. The latter are found by MinHash with banding (Broder 1997; Leskovec,
Rajaraman and Ullman, "Mining of Massive Datasets", chapter 3), in datasets of up to 20,000 different inputs and 16
million characters, which takes 1.5 s.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from trainer_service.training.spec import Example

MAX_COMPARED_EXAMPLES, MAX_COMPARED_CHARS = 20_000, 16_000_000
MIN_SHARE = 0.8
FEW_INPUTS_SHARE = 0.1
"""A note is given if the distinct inputs are fewer than this share of the examples."""
_NUM_HASHES, _ROWS_OF_A_BAND, _WORDS = 32, 4, 3
_BATCH_SHINGLES = 1 << 16
_NOT_A_WORD = re.compile(r"[\W_]+")
Hashes = NDArray[np.uint64]


class Repetition(BaseModel):
    """Counts over all examples of a dataset, training and held-out."""

    model_config = ConfigDict(frozen=True, extra="forbid")

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

    def notes(self) -> list[str]:
        """Notes for the user, possibly none. They quote no example."""
        notes = []
        if self.num_duplicates:
            notes.append(f"{self.num_duplicates} of {self.num_examples} examples repeat an earlier one exactly")
        if self.num_distinct_inputs < FEW_INPUTS_SHARE * self.num_examples:
            notes.append(f"the {self.num_examples} examples have only {self.num_distinct_inputs} different inputs")
        if self.num_near_duplicates:
            notes.append(
                f"{self.num_near_duplicates} of {self.num_examples} examples have nearly the input of an earlier one"
            )
        if self.num_contradictions:
            first = (
                f", for example the examples {' and '.join(map(str, self.first_contradiction))}"
                if self.first_contradiction
                else ""
            )
            notes.append(
                f"{self.num_contradictions} of {self.num_examples} examples contradict another: "
                f"one input, two labels{first}"
            )
        return notes


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
        self._shingles: list[Hashes] | None = []
        """None: too many inputs to compare."""
        self._first_contradiction: tuple[int, int] | None = None

    def add(self, example: Example) -> None:
        """Count an example."""
        self._num_examples += 1
        text, target = _input(example), _target(example)
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

    def result(self) -> Repetition:
        """The counts so far. Searches for similar inputs, which takes one or two seconds at most."""
        return Repetition(
            num_examples=self._num_examples,
            num_distinct_inputs=len(self._groups),
            num_duplicates=self._num_examples - len(self._whole),
            num_near_duplicates=self._num_normal_twice + _similar(self._shingles or []),
            num_contradictions=sum(group.count for group in self._groups.values() if group.contradicts),
            first_contradiction=self._first_contradiction,
        )

    def _compare_later(self, text: str) -> None:
        words = _NOT_A_WORD.sub(" ", text.casefold()).strip()
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
        if self._shingles is not None and (found := _shingles(words)).size >= 2 * _WORDS:
            self._shingles.append(found)


def _input(example: Example) -> str:
    if not example.messages:
        return example.input.strip()
    return "\n".join(f"{turn.role}: {turn.content.strip()}" for turn in example.messages[:-1])


def _target(example: Example) -> str:
    text = (
        example.messages[-1].content
        if example.messages
        else example.label
        if example.label is not None
        else example.output
    )
    return (text or "").strip()


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def _shingles(words: str) -> Hashes:
    """Hashes of the different runs of three words, sorted."""
    hashes = np.fromiter((zlib.crc32(word.encode()) for word in words.split()), np.uint64)
    if hashes.size < _WORDS:
        return hashes[:0]
    multiplier = np.uint64(0x9E3779B97F4A7C15)
    return np.unique(((hashes[:-2] * multiplier + hashes[1:-1]) * multiplier + hashes[2:]) * multiplier)


def _similar(sets: Sequence[Hashes]) -> int:
    """The number of sets that share at least MIN_SHARE (Jaccard) with an earlier set of the same MinHash band."""
    buckets: dict[bytes, int] = {}
    count = 0
    for index, signature in enumerate(_signatures(sets)):
        found = False
        for band in range(0, _NUM_HASHES, _ROWS_OF_A_BAND):
            key = bytes([band]) + signature[band : band + _ROWS_OF_A_BAND].tobytes()
            other = buckets.setdefault(key, index)
            found = found or (other != index and _share(sets[index], sets[other]) >= MIN_SHARE)
        count += found
    return count


def _signatures(sets: Sequence[Hashes]) -> list[Hashes]:
    random = np.random.default_rng(0)
    factors = random.integers(1, 1 << 63, _NUM_HASHES, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    signatures: list[Hashes] = []
    begin = 0
    while begin < len(sets):
        end, size = begin, 0
        while end < len(sets) and (end == begin or size + sets[end].size <= _BATCH_SHINGLES):
            size += sets[end].size
            end += 1
        every = np.concatenate(sets[begin:end])
        starts = np.cumsum([0, *(part.size for part in sets[begin : end - 1])])
        mixed = (every ^ (every >> np.uint64(31)))[None, :] * factors[:, None]  # [hashes, shingles]
        signatures += list(np.minimum.reduceat(mixed, starts, axis=1).T)
        begin = end
    return signatures


def _share(first: Hashes, second: Hashes) -> float:
    common = np.intersect1d(first, second, assume_unique=True).size
    return common / (first.size + second.size - common)
