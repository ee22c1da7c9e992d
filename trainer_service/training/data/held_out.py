"""Divides held-out examples into those that choose the checkpoint and those that judge it.

The best of several checkpoints looks better on the examples that chose it than on others. With enough examples, one
part chooses and another part, used once at the end, judges. With few examples, both halves do both (cross-fitting): the
checkpoint that one half chooses is judged on the other half. The published checkpoint is then chosen by all examples,
and the reported metrics say how well choosing on one half did on the other. This is valid only if the examples decide
nothing else, so an early stop always uses separate parts. A search chooses by training losses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from trainer_service.training.data.encoding import EncodedDataset, EncodedExample
from trainer_service.training.data.split import example_digest, similar_input_digest
from trainer_service.training.spec import Example

MAX_CHOOSING, MAX_JUDGING = 128, 512
"""Most examples of an evaluation in training, and of the final one. Cross-fitting: up to twice MAX_CHOOSING."""


@dataclass(frozen=True)
class HeldOut:
    """The two parts of the held-out examples."""

    choosing: EncodedDataset
    judging: EncodedDataset
    """The same as `choosing` with cross-fitting, and if there is a single example."""
    fold: tuple[int, ...] = ()
    """Cross-fitting: the half, 0 or 1, of each example. Empty: separate parts."""

    @property
    def is_apart(self) -> bool:
        """Whether no example judges a checkpoint that it helped to choose."""
        return bool(self.fold) or self.choosing is not self.judging


def parted(
    data: EncodedDataset,
    max_choosing: int,
    max_judging: int,
    *,
    cross_fit: bool,
    digest: Callable[[Example], bytes] = similar_input_digest,
) -> HeldOut:
    """Divide held-out examples, independently of their order. Examples whose inputs have the same `digest` stay
    together; if all have the same, some of them both choose and judge.
    """
    groups: dict[bytes, list[int]] = {}
    for index, example in enumerate(data.examples):
        groups.setdefault(digest(example.example), []).append(index)
    ordered = [groups[key] for key in sorted(groups)]
    if len(ordered) < 2:
        drawn = sorted(range(len(data)), key=lambda index: example_digest(data.examples[index].example))
        some = data if len(data) <= 2 * max_choosing else _some(data, drawn[: 2 * max_choosing])
        return HeldOut(some, some)
    if cross_fit and len(data) <= 2 * max_choosing:
        return HeldOut(data, data, _folds(data.examples, ordered))
    choosing, judging = list[int](), list[int]()
    wanted = min(max_choosing, len(data) // 2)
    for group in ordered:
        (choosing if len(choosing) < wanted and len(choosing) + len(group) < len(data) else judging).extend(group)
    return HeldOut(_some(data, choosing[:max_choosing]), _some(data, judging[:max_judging]))


def distinct(data: EncodedDataset) -> EncodedDataset:
    """The examples without those equal to an earlier one, since every interval treats examples as independent."""
    first: dict[bytes, int] = {}
    for index, example in enumerate(data.examples):
        first.setdefault(example_digest(example.example), index)
    return data if len(first) == len(data) else _some(data, tuple(first.values()))


def _folds(examples: Sequence[EncodedExample], groups: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """The half of each example, with about as many examples of each label in both halves."""
    fold, sizes = [0] * len(examples), [0, 0]
    for group in sorted(groups, key=lambda group: examples[group[0]].label_index):
        side = int(sizes[1] < sizes[0])
        sizes[side] += len(group)
        for index in group:
            fold[index] = side
    return tuple(fold)


def _some(data: EncodedDataset, indices: Sequence[int]) -> EncodedDataset:
    return EncodedDataset(tuple(data.examples[index] for index in sorted(indices)), data.label_ids)
