"""Which examples are held out: whole inputs where that makes about the promised share of rows, else single rows."""

from __future__ import annotations

import hashlib
import json
import random
from array import array
from collections.abc import Hashable, Iterable, Sequence
from typing import TypeVar

from shared.errors import InvalidInput
from trainer_service.training.data.example_lines import Selection
from trainer_service.training.spec import Example

TOLERANCE, TOLERATED_ROWS = 0.5, 8
"""How far whole inputs may be from the promised number of rows: by half of it, or in a small dataset by some rows."""
_Group = TypeVar("_Group", bound=Hashable)


def split_validation(
    examples: Sequence[Example], fraction: float, seed: int
) -> tuple[Sequence[Example], Sequence[Example]]:
    """(training, held out), both in the dataset's order; the same seed gives the same split.

    Examples with the same input stay on one side, so that held-out inputs are new ones. Where a few inputs have so many
    examples that no choice of whole inputs is near `fraction` of the rows, rows are held out instead: then an input may
    stand on both sides, which `count_overlap` tells, but examples that are equal in input and target never do. Raises
    InvalidInput.
    """
    if not 0 <= fraction < 1:
        raise InvalidInput.of("validation_fraction", f"must be at least 0 and below 1, not {fraction}")
    if fraction == 0:
        return _part(examples, range(len(examples))), _part(examples, ())
    wanted = num_held(len(examples), fraction)
    inputs, rows = array("q"), array("q")
    for example in examples:
        inputs.append(_number(input_digest(example)))
        rows.append(_number(example_digest(example)))
    held = _whole_groups(inputs, wanted, seed)
    if abs(len(held) - wanted) > max(TOLERANCE * wanted, TOLERATED_ROWS) or len(held) == len(examples):
        held = _whole_groups(rows, wanted, seed)
    if len(held) == len(examples):
        raise _all_the_same(len(examples))
    train = array("q", (index for index in range(len(examples)) if index not in held))
    return _part(examples, train), _part(examples, array("q", sorted(held)))


def check_split(num_examples: int, num_distinct: int, fraction: float) -> int:
    """About how many `split_validation` holds out of so many examples, of which so many differ. Raises InvalidInput as
    that does.
    """
    if num_distinct < 2:
        raise _all_the_same(num_examples)
    return num_held(num_examples, fraction)


def count_overlap(train: Iterable[Example], validation: Iterable[Example]) -> int:
    """Held-out examples whose input also stands in the training data: they flatter the score."""
    seen = {_number(input_digest(example)) for example in train}
    return sum(_number(input_digest(example)) in seen for example in validation)


def input_digest(example: Example) -> bytes:
    """16 bytes, the same for inputs that differ in white space around them only."""
    turns = example.messages[:-1] if example.messages else ()
    return _digest([example.input.strip(), *[(turn.role, turn.content.strip()) for turn in turns]])


def example_digest(example: Example) -> bytes:
    """16 bytes for input and target."""
    target = (
        example.messages[-1].content
        if example.messages
        else example.label
        if example.label is not None
        else example.output
    )
    return _digest([input_digest(example).hex(), (target or "").strip()])


def num_held(num_examples: int, fraction: float) -> int:
    """How many of so many examples are to be held out. Raises InvalidInput where that is none."""
    wanted = min(round(num_examples * fraction), num_examples - 1)
    if wanted < 1:
        raise InvalidInput.of("validation_fraction", f"{fraction} of {num_examples} examples leaves none on one side")
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
    """Indices of each key, the groups in the seed's order."""
    groups: dict[_Group, list[int]] = {}
    for index, key in enumerate(keys):
        groups.setdefault(key, []).append(index)
    order = list(groups.values())
    random.Random(seed).shuffle(order)
    return order


def _whole_groups(keys: Sequence[int], wanted: int, seed: int) -> set[int]:
    """Indices of whole groups, as near to `wanted` as the seed's order allows; all indices where there is one group
    only.
    """
    groups, held = _grouped(keys, seed), set[int]()
    left = list[list[int]]()
    for group in groups:
        if len(held) + len(group) <= wanted:
            held.update(group)
        else:
            left.append(group)
    smallest = min(left, key=len, default=[])
    if not held or len(held) + len(smallest) - wanted < wanted - len(held):
        held.update(smallest)
    return held
