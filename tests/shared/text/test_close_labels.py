"""Rare labels that are close to a frequent one."""

from __future__ import annotations

import pytest

from shared.text.label_notes import MAX_COMPARED_LABELS, close_labels
from shared.text.repetition import RepetitionCounter
from shared.values.example import Example


def test_misspellings_are_named_with_their_counts_and_the_option() -> None:
    counts = {"negative": 54, "positive": 52, "negativ": 6, "Positive": 5, "postive": 3}
    [note] = close_labels(counts)
    for part in ("'negativ' (6) and 'negative' (54)", "'Positive' (5) and 'positive' (52)", "'postive' (3)"):
        assert part in note
    assert "`--labels negative,positive`" in note


@pytest.mark.parametrize(
    ("rare", "frequent"),
    [("3 stars", "2 stars"), ("incomplete", "complete"), ("no", "not"), ("B", "A"), ("refund", "delivery"), ("", "a")],
)
def test_other_labels_are_no_misspellings(rare: str, frequent: str) -> None:
    assert close_labels({frequent: 100, rare: 2}) == []


@pytest.mark.parametrize(
    ("rare", "frequent"), [("yes", "Yes"), ("two  words", "Two words"), ("refnud", "refund"), ("café", "cafe\u0301")]
)
def test_case_space_and_swapped_letters_are(rare: str, frequent: str) -> None:
    assert close_labels({frequent: 100, rare: 2})
    assert not close_labels({frequent: 100, rare: 60}), "both are frequent"


def test_many_labels_are_not_compared() -> None:
    counter = RepetitionCounter()
    for number in range(2 * MAX_COMPARED_LABELS):
        counter.add(Example(input=f"{number}", label=f"label {chr(number + 300)}"))
    for number in range(50):
        counter.add(Example(input=f"more {number}", label="label"))
    assert counter.result().label_notes == ()


def test_labels_that_look_the_same_are_named_among_hundreds() -> None:
    counter = RepetitionCounter()
    for number in range(2 * MAX_COMPARED_LABELS):
        counter.add(Example(input=f"{number}", label=f"label {number}"))
    counter.add(Example(input="one more", label="label  7"))
    (note,) = counter.result().label_notes
    assert "'label  7' (1) and 'label 7' (1)" in note


def test_labels_are_counted_with_the_repetition() -> None:
    counter = RepetitionCounter()
    for number in range(20):
        counter.add(Example(input=f"{number}", label="positive" if number else "Positive"))
    found = counter.result()
    assert "'Positive' (1)" in found.label_notes[0]
    assert found.notes() == list(found.label_notes)
