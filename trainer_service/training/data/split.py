"""Chooses held-out examples: by whole inputs if that gives about the requested share of rows, else by single rows."""

from __future__ import annotations

import hashlib
import json
import random
from array import array
from collections.abc import Hashable, Iterable, Sequence
from typing import TypeVar
from unicodedata import normalize

from shared.errors import InvalidInput
from shared.values.example import target_of
from trainer_service.training.data.example_lines import Selection
from trainer_service.training.spec import Example

TOLERANCE, TOLERATED_ROWS = 0.5, 8
"""How far a split by inputs may be from the requested number of rows: half of it, or some rows in a small dataset."""
_Group = TypeVar("_Group", bound=Hashable)


def split_validation(
    examples: Sequence[Example], fraction: float, seed: int
) -> tuple[Sequence[Example], Sequence[Example]]:
    """(training, held out), both in the dataset's order; the same seed gives the same split.

    Examples with the same input, apart from case and white space, stay on one side, so that held-out inputs are new.
    Where a few inputs have most of the examples, no choice of whole inputs is near `fraction` of the rows. Single rows
    are held out then: an input may be on both sides (see `count_overlap`), but equal examples never are. Each label
    keeps an example to train on, unless nothing could be held out then. Raises InvalidInput.
    """
    if not 0 <= fraction < 1:
        raise InvalidInput.of("spec.validation_fraction", f"must be at least 0 and below 1, not {fraction}")
    if fraction == 0:
        return _part(examples, range(len(examples))), _part(examples, ())
    wanted = num_held(len(examples), fraction)
    inputs, rows, labels, known = array("q"), array("q"), array("q"), dict[str | None, int]()
    for example in examples:
        inputs.append(_number(similar_input_digest(example)))
        rows.append(_number(example_digest(example)))
        labels.append(known.setdefault(example.label, len(known)))
    groups = inputs
    held = _whole_groups(groups, wanted, seed)
    if abs(len(held) - wanted) > max(TOLERANCE * wanted, TOLERATED_ROWS) or len(held) == len(examples):
        groups = rows
        held = _whole_groups(groups, wanted, seed, leaves_one=True)
    if len(held) == len(examples):
        raise _all_the_same(len(examples))
    trained = {labels[index] for index in range(len(examples)) if index not in held}
    rare = {groups[index] for index in held if labels[index] not in trained}
    held = {index for index in held if groups[index] not in rare} or held
    train = array("q", (index for index in range(len(examples)) if index not in held))
    return _part(examples, train), _part(examples, array("q", sorted(held)))


def check_split(num_examples: int, num_distinct: int, fraction: float) -> int:
    """The approximate number of examples that `split_validation` holds out. Raises InvalidInput like it.

    `num_distinct`: the number of examples that differ in input or target.
    """
    if num_distinct < 2:
        raise _all_the_same(num_examples)
    return num_held(num_examples, fraction)


def count_overlap(train: Iterable[Example], validation: Iterable[Example]) -> int:
    """The number of held-out examples whose input, apart from case and white space, is also in the training data.

    They make the score too good.
    """
    seen = {_number(similar_input_digest(example)) for example in train}
    return sum(_number(similar_input_digest(example)) in seen for example in validation)


def input_digest(example: Example) -> bytes:
    """A digest of the input, 16 bytes, ignoring white space around it."""
    turns = example.messages[:-1] if example.messages else ()
    return _digest([example.input.strip(), *[(turn.role, turn.content.strip()) for turn in turns]])


def similar_input_digest(example: Example) -> bytes:
    """A digest of the input, 16 bytes, ignoring case, white space and the Unicode form of accented letters."""
    texts = [example.input, *(text for turn in example.messages[:-1] for text in (turn.role, turn.content))]
    return _digest([" ".join(normalize("NFC", text).casefold().split()) for text in texts])


def example_digest(example: Example) -> bytes:
    """A digest of input and target, 16 bytes."""
    return _digest([input_digest(example).hex(), target_of(example).strip()])


def num_held(num_examples: int, fraction: float) -> int:
    """The number of examples to hold out. Raises InvalidInput if it is 0."""
    wanted = min(round(num_examples * fraction), num_examples - 1)
    if wanted < 1:
        raise InvalidInput.of(
            "spec.validation_fraction", f"{fraction} of {num_examples} examples leaves none on one side"
        )
    return wanted


def _all_the_same(num_examples: int) -> InvalidInput:
    text = (
        f"all {num_examples} examples are the same, so none can be held out: add others, or give a validation dataset"
    )
    return InvalidInput.of("dataset", text)


def _digest(value: object) -> bytes:
    return hashlib.blake2b(json.dumps(value).encode(), digest_size=16).digest()


def _number(digest: bytes) -> int:
    return int.from_bytes(digest[:8], "big", signed=True)


def _part(examples: Sequence[Example], indices: Sequence[int]) -> Sequence[Example]:
    if isinstance(examples, tuple):
        return tuple(examples[index] for index in indices)
    return Selection(examples, indices)


def _grouped(keys: Sequence[_Group], seed: int) -> list[list[int]]:
    """The indices of each key, in an order given by the seed."""
    groups: dict[_Group, list[int]] = {}
    for index, key in enumerate(keys):
        groups.setdefault(key, []).append(index)
    order = list(groups.values())
    random.Random(seed).shuffle(order)
    return order


def _whole_groups(keys: Sequence[int], wanted: int, seed: int, *, leaves_one: bool = False) -> set[int]:
    """Indices of whole groups, as near to `wanted` as the seed's order allows; all indices if there is one group.

    `leaves_one`: not all groups if there are several.
    """
    groups, held = _grouped(keys, seed), set[int]()
    left = list[list[int]]()
    for group in groups:
        if len(held) + len(group) <= wanted:
            held.update(group)
        else:
            left.append(group)
    smallest = min(left, key=len, default=[])
    is_nearer = len(held) + len(smallest) - wanted < wanted - len(held)
    if not held or (is_nearer and len(left) > leaves_one):
        held.update(smallest)
    return held
