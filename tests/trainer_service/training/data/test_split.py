"""Which examples are held out where inputs repeat."""

from __future__ import annotations

import pytest

from shared.errors import InvalidInput
from trainer_service.training.data.split import count_overlap, split_validation
from trainer_service.training.spec import Example

FRACTION = 0.1


def of_inputs(*counts: int) -> tuple[Example, ...]:
    """The given number of examples of each input, each with another target."""
    inputs = [f"Write a slogan for product {number}." for number, count in enumerate(counts) for _ in range(count)]
    return tuple(Example(line=line, input=input, output=f"slogan {line}") for line, input in enumerate(inputs, start=1))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("counts", [(750, 250), (1000,), (900, 50, 50), (400, 300, 300)])
def test_a_few_inputs_do_not_change_the_promised_share(counts: tuple[int, ...], seed: int) -> None:
    train, held = split_validation(of_inputs(*counts), FRACTION, seed)
    assert 50 <= len(held) <= 150
    assert len(train) + len(held) == 1000


def test_whole_inputs_are_held_out_where_that_makes_the_share() -> None:
    train, held = split_validation(of_inputs(*[10] * 100), FRACTION, seed=3)
    assert len(held) == 100
    assert count_overlap(train, held) == 0


def test_inputs_that_differ_in_case_white_space_and_unicode_form_stay_on_one_side() -> None:
    forms = ("Is th\u00e9 {} good?", "is  THE\u0301 {} good? ", "Is th\u00e9\n{} good?")
    inputs = [form.format(number) for number in range(20) for form in forms]
    examples = tuple(Example(line=line, input=input, output=f"{line}") for line, input in enumerate(inputs, start=1))
    train, held = split_validation(examples, FRACTION, seed=3)
    assert len(held) == 6
    assert {(example.line - 1) // 3 for example in train}.isdisjoint((example.line - 1) // 3 for example in held)
    assert count_overlap(examples[:1], examples[1:3]) == 2


def test_a_large_group_is_skipped_for_small_ones() -> None:
    train, held = split_validation(of_inputs(700, *[10] * 30), FRACTION, seed=1)
    assert len(held) == 100
    assert count_overlap(train, held) == 0


def test_rows_that_are_the_same_stay_on_one_side() -> None:
    twice = tuple(Example(line=line, input="Write a slogan.", output=f"slogan {line // 2}") for line in range(1000))
    train, held = split_validation(twice, FRACTION, seed=0)
    assert {example.output for example in train}.isdisjoint(example.output for example in held)
    assert count_overlap(train, held) == len(held), "and the overlapping inputs are counted"


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("counts", [(3, 2), (5, 5, 5, 5), (9, 1), (1, 1)])
def test_several_examples_that_repeat_are_not_called_the_same(counts: tuple[int, ...], seed: int) -> None:
    rows = [number for number, count in enumerate(counts) for _ in range(count)]
    examples = tuple(Example(line=line, input="x", output=f"{row}") for line, row in enumerate(rows, start=1))
    train, held = split_validation(examples, 0.9 if len(rows) > 2 else 0.5, seed)
    assert len(train) + len(held) == len(rows)
    assert {example.output for example in train}.isdisjoint(example.output for example in held)
    assert train
    assert held


@pytest.mark.parametrize("seed", range(20))
def test_a_label_keeps_an_example_to_train_on(seed: int) -> None:
    labels = ["common"] * 8 + ["rare", "rarer"]
    examples = tuple(Example(line=line, input=f"{line}", label=label) for line, label in enumerate(labels, start=1))
    train, held = split_validation(examples, 0.3, seed)
    assert {example.label for example in train} == set(labels)
    assert 1 <= len(held) <= 3


@pytest.mark.parametrize("seed", range(20))
def test_a_label_is_kept_with_all_examples_of_its_input(seed: int) -> None:
    examples = tuple(
        Example(line=line, input=f"{line // 2}", label="rare" if line == 1 else "common") for line in range(20)
    )
    train, held = split_validation(examples, 0.3, seed)
    assert "rare" in {example.label for example in train}
    assert count_overlap(train, held) == 0


def test_where_only_whole_labels_can_be_held_out_one_is() -> None:
    examples = tuple(Example(line=line, input=f"{line % 2}", label=f"{line % 2}") for line in range(1, 41))
    assert len(split_validation(examples, FRACTION, 0)[1]) == 20


def test_examples_that_are_all_the_same_are_said_to_be() -> None:
    same = tuple(Example(line=line, input="Write a slogan.", output="Tea!") for line in range(1, 1001))
    with pytest.raises(InvalidInput, match="all 1000 examples are the same, so none can be held out"):
        split_validation(same, FRACTION, 0)
