"""Every line of examples/product-descriptions follows the format that its README states."""

import json
import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "examples" / "product-descriptions"
INPUT = re.compile(
    r"name: (?P<name>[^|]+) \| category: (?P<category>[^|]+) \| [^|:]+: [^|]+ \| feature: [^|]+ "
    r"\| price: (?P<price>\$\d+)"
)
OUTPUT = re.compile(
    r"\*\*(?P<name>[^*]+)\*\* – (?P<hook>[^#*]+[.!?]) (?P<facts>[A-Z0-9][^#*!?]+), (?P<price>\$\d+)\. "
    r"#(?P<tag>[a-z0-9]+) #[a-z0-9]+"
)


def examples(part: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (FOLDER / f"{part}.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize(("part", "at_least"), [("train", 140), ("heldout", 24)])
def test_every_line_has_the_format(part: str, at_least: int) -> None:
    lines = examples(part)
    assert len(lines) >= at_least
    for number, example in enumerate(lines, 1):
        assert set(example) == {"input", "output"}, number
        asked, given = INPUT.fullmatch(example["input"]), OUTPUT.fullmatch(example["output"])
        assert asked, f"line {number}: {example}"
        assert given, f"line {number}: {example}"
        assert (given["name"], given["price"]) == (asked["name"], asked["price"]), f"line {number}"
        assert given["tag"] == re.sub("[^a-z0-9]", "", asked["category"].lower()), f"line {number}"


@pytest.mark.parametrize("part", ["train", "heldout"])
def test_no_number_is_invented(part: str) -> None:
    for number, example in enumerate(examples(part), 1):
        assert set(re.findall(r"\d+", example["output"])) <= set(re.findall(r"\d+", example["input"])), (
            f"line {number}: {example}"
        )


@pytest.mark.parametrize("part", ["train", "heldout"])
def test_the_facts_name_the_category(part: str) -> None:
    for number, example in enumerate(examples(part), 1):
        category, text = example["input"].split("category: ")[1].split(" | ")[0].lower(), example["output"].lower()
        assert all(word in text for word in category.split()), f"line {number}: {example}"


def test_held_out_products_are_unseen() -> None:
    train, heldout = examples("train"), examples("heldout")
    names = [example["input"].split(" | ")[0] for example in train + heldout]
    assert len(set(names)) == len(names)
    hooks = [example["output"].split(" – ")[1].split(",")[0] for example in train + heldout]
    assert len(set(hooks)) == len(hooks)
