"""Every line of examples/support-tone is one question and one answer in the house tone that its README describes."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "examples" / "support-tone"


def examples(part: str) -> list[Any]:
    return [
        json.loads(line)["messages"] for line in (FOLDER / f"{part}.jsonl").read_text(encoding="utf-8").splitlines()
    ]


@pytest.mark.parametrize(("part", "count"), [("train", 80), ("heldout", 15)])
def test_answers_keep_the_house_tone(part: str, count: int) -> None:
    chats = examples(part)
    assert len(chats) == count
    for number, (question, answer) in enumerate(chats, 1):
        assert (question["role"], answer["role"]) == ("user", "assistant"), number
        text = answer["content"]
        assert re.fullmatch(r"[^.]*!.*[.!?]", text), f"line {number}: the first sentence is warm: {text}"
        assert 8 <= len(text.split()) <= 30, f"line {number}: {text}"
        assert not re.search(r"unfortunately|dear customer|\bour department\b", text, re.IGNORECASE), (
            f"line {number}: {text}"
        )


def test_no_question_occurs_twice() -> None:
    questions = [chat[0]["content"].lower() for part in ("train", "heldout") for chat in examples(part)]
    assert len(set(questions)) == len(questions)
