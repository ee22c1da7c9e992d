"""The five examples: enough of them, nothing in both parts, and every answer follows from its input."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from benchmarks.examples import RESULTS, table
from shared.values.enums import Metric
from softprompt.demo.example import known_examples

FOLDER = Path(__file__).parents[2] / "examples"
NAMES = ["discharge-notes", "product-texts", "recommendations", "review-sentiment", "support-tone"]
NUMBERS = dict(
    zip(
        ["two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "twelve", "forty"],
        map(str, (*range(2, 11), 12, 40)),
        strict=True,
    )
)
SIGN_OFF = " Happy trails, Fernhill"


def examples(name: str, *parts: str) -> list[Any]:
    files = [FOLDER / name / f"{part}.jsonl" for part in parts or ("train", "heldout")]
    return [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]


def asked(example: Any) -> str:
    return example["messages"][0]["content"] if "messages" in example else example["input"]


def words(text: str) -> set[str]:
    return set(re.findall(r"[\w']+", text.lower()))


def numbers(text: str) -> set[str]:
    text = text.replace("twenty-five", "25")
    return set(re.findall(r"\d+(?:\.\d+)?", text)) | {NUMBERS[word] for word in words(text) & NUMBERS.keys()}


def test_the_command_knows_the_five() -> None:
    known = known_examples()
    assert [example.name for example in known] == NAMES
    for example in known:
        chosen = example.hyperparameters
        assert chosen.init is not None
        assert len(chosen.init.text.split()) > 20, "a person's instruction"
        assert chosen.metric not in (None, Metric.LOSS), "a metric that people can read"
        readme = (example.folder / "README.md").read_text(encoding="utf-8")
        assert f"softprompt example {example.name}" in readme


@pytest.mark.parametrize("name", NAMES)
def test_there_are_enough_and_the_held_out_ones_are_new(name: str) -> None:
    train, heldout = examples(name, "train"), examples(name, "heldout")
    assert len(train) >= 200
    assert len(heldout) >= 60
    assert len({asked(example) for example in train + heldout}) == len(train) + len(heldout)
    seen = [words(asked(example)) for example in train]
    for example in heldout:
        new = words(asked(example))
        assert max(len(new & old) / len(new | old) for old in seen) < 0.9, asked(example)


@pytest.mark.parametrize(("part", "of_each_label"), [("train", 68), ("heldout", 32)])
def test_labels_of_reviews_are_balanced(part: str, of_each_label: int) -> None:
    labels = Counter(example["label"] for example in examples("review-sentiment", part))
    assert labels == dict.fromkeys(("positive", "neutral", "negative"), of_each_label)


def test_support_answers_keep_the_house_tone_and_add_no_facts() -> None:
    for example in examples("support-tone"):
        question, answer = (turn["content"] for turn in example["messages"])
        assert re.fullmatch(r"Customer: [^\n]+\nNotes: [^\n]+", question), question
        text = answer.removesuffix(SIGN_OFF)
        assert text != answer, answer
        assert re.match(r"[^.!?]+!", text), f"the first sentence is warm: {text}"
        assert len(text.split()) <= 40, text
        assert not re.search(r"unfortunately|dear customer|\bI\b", text, re.IGNORECASE), text
        spoken = text.replace("One of the two is", "").replace("Two questions tell you", "")
        assert numbers(spoken) <= numbers(question), f"{question}\n{text}"


def test_every_item_of_a_discharge_note_becomes_one_sentence_always_the_same() -> None:
    meaning: dict[str, str] = {}
    for example in examples("discharge-notes"):
        items = example["input"].removesuffix(".").split("; ")
        sentences = re.findall(r".+?[a-z]\.(?: |$)", example["output"])
        assert len(items) == len(sentences), example
        for item, sentence in zip(items, sentences, strict=True):
            assert meaning.setdefault(item, sentence.strip()) == sentence.strip(), item
            assert not re.search(r"\b(od|bd|tds|qds|prn|GP|OPA|FBC)\b|\d/\d", sentence), sentence
    assert len(set(meaning.values())) == len(meaning), "two items that mean the same are written in the same way"


def test_a_recommendation_follows_from_the_book_just_finished() -> None:
    reasons: dict[str, str] = {}
    pairs = {part: set[tuple[str, str]]() for part in ("train", "heldout")}
    for part, found in pairs.items():
        for example in examples("recommendations", part):
            before, finished, shelf = (line.split(": ", 1)[1] for line in example["input"].split("\n"))
            read = re.findall(r"(.+?) \(([a-z ]+)\)(?:; |$)", before)
            ((last, category),) = re.findall(r"(.+) \(([a-z ]+)\)", finished)
            offered = dict(entry.split(": ", 1) for entry in shelf.split("; "))
            assert len(offered) == 3
            assert offered.keys() & {other for _, other in read} - {category}, "a book like one read before tempts"
            begin = f"You have just finished {last} ({category}), so here is more {category}: {offered[category]}, "
            assert example["output"].startswith(begin)
            reason = example["output"].removeprefix(begin)
            assert reasons.setdefault(category, reason) == reason
            found.add((last, offered[category]))
    assert len(set(reasons.values())) == 8
    assert not pairs["train"] & pairs["heldout"], "no pair of books decides in both parts"
    new = {book for _, book in pairs["heldout"]} - {book for _, book in pairs["train"]}
    assert len(new) >= 12, "new books, which no training example recommends"


def test_product_texts_say_what_the_catalogue_says() -> None:
    openings: dict[str, str] = {}
    for example in examples("product-texts"):
        entry = dict(field.split(": ", 1) for field in example["input"].split(" | "))
        text = example["output"]
        for name in ("item", "material", "colour", "made in", "price"):
            assert entry[name] in text, example
        assert set(re.findall(r"\d+", text)) <= set(re.findall(r"\d+", example["input"])), example
        opening = re.match(r"[^.]+\.", text)
        assert opening is not None
        assert openings.setdefault(entry["item"], opening[0]) == opening[0]
    assert len(set(openings.values())) == len(openings) >= 30, "each kind of product has its own line"


def test_readmes_show_the_measured_results() -> None:
    for name, outcome in json.loads(RESULTS.read_text()).items():
        counts = outcome["num_train"], outcome["num_held_out"]
        assert counts == (len(examples(name, "train")), len(examples(name, "heldout")))
        assert table(outcome) in (FOLDER / name / "README.md").read_text(encoding="utf-8")
        assert all(rival["beaten"] == (rival["low"] > 0) for rival in outcome["rivals"])
