"""The MetaMathQA runner on a few made rows, and the reading of answers."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import metamath
from shared.values.enums import PrefixKind


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rows = [
        {"query": f"What is {n} + 1?", "response": f"It is {n + 1}. The answer is: {n + 1}", "type": "GSM_Rephrased"}
        for n in range(metamath.NUM_HELD_OUT + 6)
    ]
    rows.insert(1, {"query": "long " * 300, "response": "The answer is: 0", "type": "GSM_Rephrased"})
    (tmp_path / "metamath.json").write_text(json.dumps(rows))
    test = [{"question": f"What is {n} + 2?", "answer": f"#### {n + 2}"} for n in range(3)]
    (tmp_path / "gsm8k-test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in test))
    (tmp_path / "wiki.jsonl").write_text(json.dumps({"text": "The moon is a moon of the earth."}) + "\n")
    return tmp_path


@pytest.mark.parametrize("kind", PrefixKind)
def test_a_run_has_the_metrics_of_pefts_comparison(
    kind: PrefixKind, data: Path, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "results" / "metamath.json"
    command = [
        "metamath",
        "--model",
        str(tiny_model_dir),
        "--data",
        str(data),
        "--kind",
        "PROMPT",
        "--dtype",
        "float32",
    ]
    monkeypatch.setattr(sys, "argv", [*command, "--steps", "2", "--virtual-tokens", "4", "--output", str(output)])
    monkeypatch.setattr(metamath, "MAX_NEW_TOKENS", 4)
    metamath.main()
    (found,) = json.loads(output.read_text())
    assert (found["num_train"], found["num_test"], len(found["right"])) == (6, 3, 3), "the long row is left out"
    assert found["test_accuracy"] == found["right"].count("1") / 3
    assert 0 < found["bytes"] - 4 * found["parameters"] < 1000
    assert found["forgetting"] != 0
    assert (found["hyperparameters"]["num_steps"], found["hyperparameters"]["batch_size"]) == (2, metamath.BATCH_SIZE)


@pytest.mark.parametrize(
    ("answer", "expected", "is_right"),
    [
        ("4 + 4 = 8. The answer is: 8", "#### 8", True),
        ("The answer is: 8.0\n\nQuestion: next", "#### 8", True),
        ("The answer is $50%.", "#### 50", True),
        ("The answer is: 1/2", "#### 0.5", True),
        ("The answer is: 1/0", "#### 0", False),
        ("The answer is: 7. No: The answer is: 8", "#### 8", True),
        ("it is 8", "#### 8", False),
        ("The answer is: x", "The answer is: x", True),
        ("The answer is: 1/2/3", "#### 1", False),
    ],
)
def test_an_answer_is_right_if_its_number_is(answer: str, expected: str, is_right: bool) -> None:
    assert metamath.states(answer, expected) is is_right


def test_a_missing_file_or_column_is_named(data: Path) -> None:
    with pytest.raises(SystemExit, match="needs one file gsm8k-train"):
        next(metamath._read(data, "gsm8k-train", "question"))
    with pytest.raises(SystemExit, match="row 1: needs the texts question and level"):
        next(metamath._read(data, "gsm8k-test", "question", "level"))
