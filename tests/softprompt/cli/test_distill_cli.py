"""`softprompt distill`: what it sends, and how it reads texts and questions."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared.errors import InvalidInput, NotFound
from shared.values.example import Example
from shared.values.results import DistillationResult
from softprompt.data.distillation import distillation_examples
from softprompt.report.distillation import distillation_facts
from tests.softprompt.cli_runner import CliRunner
from tests.softprompt.conftest import Services


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], services: Services) -> CliRunner:
    monkeypatch.setenv("SOFTPROMPT_TRAINER", services.trainer_endpoint)
    return CliRunner(monkeypatch, capsys)


def test_the_command_sends_text_questions_and_settings(cli: CliRunner, services: Services, tmp_path: Path) -> None:
    text, questions = tmp_path / "text.txt", tmp_path / "questions.txt"
    text.write_text("Be kind.\n")
    questions.write_text("Hello?\n\nAnyone?\n")
    options = ("--num-questions", "8", "--answer-tokens", "20", "--steps", "9", "--maximum-kl", "0.5", "--no-follow")
    done = cli("distill", str(text), "--prompt", "kind", "--questions", str(questions), *options)
    assert done.code == 0
    [spec] = services.trainer.specs
    assert (spec.distillation.num_questions, spec.distillation.max_answer_tokens) == (8, 20)
    assert spec.hyperparameters.num_steps == 9
    assert spec.publish.gate.minimum_metric == 0.5
    assert spec.dataset.dataset.startswith("datasets/sha256-")


def test_a_missing_or_blank_text_is_named(cli: CliRunner, tmp_path: Path) -> None:
    assert "document" in cli("distill", str(tmp_path / "none.txt"), "--prompt", "kind").err
    (tmp_path / "blank.txt").write_text(" \n")
    assert "document: is blank" in cli("distill", str(tmp_path / "blank.txt"), "--prompt", "kind").err


def test_files_that_are_no_texts_are_named(tmp_path: Path) -> None:
    binary, huge = tmp_path / "text.bin", tmp_path / "huge.txt"
    for content in (bytes(100), "Be kind.".encode("utf-16-le")):
        binary.write_bytes(content)
        for given in ((binary, ()), ("text", binary)):
            with pytest.raises(InvalidInput, match="is not a text: it has the character U"):
                distillation_examples(*given)
    with huge.open("wb") as file:
        file.truncate(1 << 40)  # takes no room on the disk
    with pytest.raises(InvalidInput, match=r"document: 'huge\.txt' is too large: at most 512 MiB are allowed"):
        distillation_examples(huge)


def test_questions_are_lines_or_json(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"input": "one", "output": "x"}\n{not json\n\n two \n')
    assert [example.input for example in distillation_examples("text", path)] == ["text", "one", "{not json", "two"]
    assert distillation_examples("text", ["a"])[1] == Example("a", "question")
    path.write_text('{"label": "x"}\n')
    with pytest.raises(InvalidInput, match="questions line 1"):
        distillation_examples("text", path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidInput, match="is not UTF-8"):
        distillation_examples("text", path)
    with pytest.raises(InvalidInput, match=r"questions\[0\]"):
        distillation_examples("text", [" "])
    with pytest.raises(InvalidInput, match="list of texts"):
        distillation_examples("text", "log.jsonl")
    with pytest.raises(NotFound):
        distillation_examples(tmp_path / "none")


def test_the_facts_of_a_distillation_are_sentences() -> None:
    found = DistillationResult(200, 32, 9000, 700, 50, 0.25, 1.5, 0.875, 0.5, 0.5, 0.025)
    facts = distillation_facts(found)
    assert "KL 0.25 nats per token (bare model 1.5)" in facts["teacher"]
    assert "87.5% (bare model 50.0%)" in facts["teacher"]
    assert facts["saves"] == "700 tokens in each request; its input is computed in 25 ms instead of 500 on the worker"
