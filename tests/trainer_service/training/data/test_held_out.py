"""Which held-out examples choose a checkpoint and which ones measure it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from trainer_service.training.data.encoding import EncodedDataset, EncodedExample
from trainer_service.training.data.held_out import parted
from trainer_service.training.spec import Example


def dataset(inputs: list[int]) -> EncodedDataset:
    return EncodedDataset(
        tuple(
            EncodedExample(Example(line=line, input=f"input {one}", label=str(one % 3)), (1, one + 2), (1,), one % 3)
            for line, one in enumerate(inputs, start=1)
        ),
        ((1,), (2,), (3,)),
    )


@given(inputs=st.lists(st.integers(0, 40), min_size=1, max_size=60), limit=st.integers(4, 40), cross_fit=st.booleans())
def test_no_example_judges_what_it_or_its_twin_chose(inputs: list[int], limit: int, cross_fit: bool) -> None:
    data = dataset(inputs)
    found = parted(data, limit, 4 * limit, cross_fit=cross_fit)
    again = parted(
        EncodedDataset(tuple(reversed(data.examples)), data.label_ids), limit, 4 * limit, cross_fit=cross_fit
    )
    assert {e.input_ids for e in again.choosing.examples} == {e.input_ids for e in found.choosing.examples}, (
        "whatever the order"
    )
    if len(set(inputs)) == 1:
        assert not found.is_apart
    elif found.fold:
        assert found.choosing is found.judging is data
        assert set(found.fold) == {0, 1}
        sides: dict[tuple[int, ...], set[int]] = {}
        for example, side in zip(data.examples, found.fold, strict=True):
            sides.setdefault(example.input_ids, set()).add(side)
        assert all(len(side) == 1 for side in sides.values())
    else:
        chose, judged = ({e.input_ids for e in part.examples} for part in (found.choosing, found.judging))
        assert chose
        assert judged
        assert not chose & judged
        assert len(found.choosing) <= limit
        assert len(found.judging) <= 4 * limit


def test_few_examples_do_both_in_halves_that_have_every_label() -> None:
    found = parted(dataset(list(range(24))), 128, 512, cross_fit=True)
    assert sum(found.fold) == 12
    by_label = [
        sum(side for side, example in zip(found.fold, found.choosing.examples, strict=True) if example.label_index == i)
        for i in range(3)
    ]
    assert by_label == [4, 4, 4]


def test_many_examples_are_parted() -> None:
    found = parted(dataset(list(range(1000))), 128, 512, cross_fit=True)
    assert (len(found.choosing), len(found.judging), found.fold) == (128, 512, ())


def test_inputs_that_differ_in_case_and_space_stay_together() -> None:
    """As between training and held-out examples."""
    texts = [text for number in range(20) for text in (f"Review {number} here", f"review  {number} HERE ")]
    rows = (EncodedExample(Example(line=line, input=text, output="a"), (1,), (1,)) for line, text in enumerate(texts))
    fold = parted(EncodedDataset(tuple(rows)), 128, 512, cross_fit=True).fold
    assert fold[::2] == fold[1::2]
    assert sum(fold) == 20


def test_of_many_outputs_of_one_input_few_are_measured() -> None:
    rows = (EncodedExample(Example(line=line, input="A haiku", output=str(line)), (1,), (1,)) for line in range(300))
    data = EncodedDataset(tuple(rows))
    found = parted(data, 8, 32, cross_fit=True)
    again = parted(EncodedDataset(tuple(reversed(data.examples))), 8, 32, cross_fit=True)
    assert len(found.choosing) == 16
    assert not found.is_apart
    lines = [{row.example.line for row in one.choosing.examples} for one in (found, again)]
    assert lines[0] == lines[1], "whatever the order"
