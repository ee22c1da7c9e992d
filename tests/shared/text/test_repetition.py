"""Repeated, contradictory and nearly equal examples are counted and reported without quoting them."""

from __future__ import annotations

import random

from shared.text.template import Message
from tests.trainer_service.builders import repetition_of
from trainer_service.training.spec import Example

WORDS = [f"word{number}" for number in range(500)]


def labelled(*pairs: tuple[str, str]) -> list[Example]:
    return [Example(line=number, input=text, label=label) for number, (text, label) in enumerate(pairs, start=1)]


def test_the_same_input_with_two_labels_contradicts() -> None:
    found = repetition_of(labelled(("good", "p"), ("bad", "n"), ("good ", "n"), ("good", "p"), ("fair", "p")))
    assert (found.num_contradictions, found.first_contradiction, found.num_duplicates, found.num_distinct_inputs) == (
        3,
        (1, 3),
        1,
        3,
    )
    assert (
        "3 of 5 examples contradict another: one input, two labels, for example the examples 1 and 3" in found.notes()
    )
    assert "1 of 5 examples repeats an earlier one exactly" in found.notes()


def test_several_outputs_of_one_input_do_not_contradict() -> None:
    examples = [Example(line=number, input="Write a slogan.", output=f"slogan {number}") for number in range(1, 41)]
    found = repetition_of(examples)
    assert (found.num_contradictions, found.num_duplicates, found.num_distinct_inputs) == (0, 0, 1)
    assert found.notes() == ["the 40 examples have only 1 different input"]


def test_72_lines_of_which_24_are_different() -> None:
    examples = [Example(line=number, input=f"Lamp {number % 24}", output="a lamp") for number in range(72)]
    assert repetition_of(examples).notes() == ["48 of 72 examples repeat an earlier one exactly"]


def test_case_punctuation_and_a_few_words_make_near_duplicates() -> None:
    rnd = random.Random(1)
    text = rnd.choices(WORDS, k=60)
    inputs = ["A good film.", "a good  FILM", " ".join(text), " ".join([*text[:40], "other", *text[41:]])]
    inputs += [" ".join(rnd.choices(WORDS, k=60)) for _ in range(200)]
    found = repetition_of([Example(line=number, input=text, output="x") for number, text in enumerate(inputs)])
    assert found.num_near_duplicates == 2
    assert found.notes() == ["2 of 204 examples have nearly the input of an earlier one"]


def test_the_unicode_form_of_a_letter_makes_near_duplicates() -> None:
    inputs = ("Le th\u00e9 est bon.", "le the\u0301 est bon", "le the est bon")
    found = repetition_of([Example(line=number, input=text, output="x") for number, text in enumerate(inputs)])
    assert (found.num_distinct_inputs, found.num_near_duplicates) == (3, 1)


def test_conversations_are_compared_without_their_last_turn() -> None:
    def conversation(question: str, answer: str) -> Example:
        return Example(
            line=1, messages=(Message(role="user", content=question), Message(role="assistant", content=answer))
        )

    found = repetition_of(
        [conversation("a", "b"), conversation("a", "c"), conversation("a", "b"), conversation("?", "!")]
    )
    assert (found.num_distinct_inputs, found.num_duplicates) == (2, 1)
    assert repetition_of([conversation("a", "b"), conversation("z", "c")]).notes() == []
