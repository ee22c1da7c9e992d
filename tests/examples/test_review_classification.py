"""Every line of examples/review-classification is a labelled sentence, and the held-out ones are unseen."""

import json
from collections import Counter
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "examples" / "review-classification"


def examples(part: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (FOLDER / f"{part}.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize(("part", "of_each_label"), [("train", 60), ("heldout", 15)])
def test_labels_are_balanced(part: str, of_each_label: int) -> None:
    lines = examples(part)
    assert all(set(example) == {"input", "label"} and 10 <= len(example["input"]) <= 120 for example in lines)
    assert Counter(example["label"] for example in lines) == {"positive": of_each_label, "negative": of_each_label}


def test_no_review_occurs_twice() -> None:
    reviews = [example["input"].lower() for part in ("train", "heldout") for example in examples(part)]
    assert len(set(reviews)) == len(reviews)
