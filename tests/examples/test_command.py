"""`softprompt example` from its first to its last line, with services that it starts and with running ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shared.names import PromptReference
from shared.store import open_store
from tests.both_services import both_in_a_process
from tests.softprompt.cli_runner import CliRunner

ROOT = Path(__file__).parents[2]
SETTINGS = """
title = "Numbers in words"
instruction = "Write the number in words."
metric = "{metric}"

[hyperparameters]
num_steps = 4
num_virtual_tokens = 4
"""


@pytest.fixture
def cli(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny_model_dir: Path
) -> CliRunner:
    """With the examples `numbers` and `parity`, which take seconds."""
    tasks = {
        "numbers": ("chrf", lambda number: {"input": f"number {number}", "output": f"It is {number}."}),
        "parity": ("accuracy", lambda number: {"input": f"number {number}", "label": "odd" if number % 2 else "even"}),
    }
    for name, (metric, row) in tasks.items():
        folder = tmp_path / "examples" / name
        folder.mkdir(parents=True)
        (folder / "example.toml").write_text(SETTINGS.format(metric=metric))
        for part, some in (("train", range(12)), ("heldout", range(12, 24))):
            (folder / f"{part}.jsonl").write_text("".join(json.dumps(row(number)) + "\n" for number in some))
    monkeypatch.setattr("softprompt.demo.example.examples_dir", lambda: tmp_path / "examples")
    return CliRunner(monkeypatch, capsys)


def test_the_examples_are_listed_and_a_wrong_name_is_refused(cli: CliRunner) -> None:
    assert [line.split()[0] for line in cli("example").out.splitlines()] == ["EXAMPLE", "numbers", "parity"]
    outcome = cli("example", "number")
    assert outcome.code == 3
    assert "do you mean 'numbers'?" in outcome.err
    assert "there are numbers, parity" in cli("example", "../other").err


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (("--report", "result.txt"), "'result.txt' must end with .html, .json, .csv"),
        (("--report", "no-such-folder/result.html"), "there is no directory 'no-such-folder'"),
        (("--trainer", "127.0.0.1:1", "--data", "kept"), "not for --trainer"),
        (("--trainer", "127.0.0.1:1", "--model", "other"), "not for --trainer"),
    ],
)
def test_options_are_checked_before_the_training(cli: CliRunner, option: tuple[str, ...], said: str) -> None:
    outcome = cli("example", "numbers", *option)
    assert outcome.code == 2
    assert said in outcome.err


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_an_example_with_services_of_its_own(cli: CliRunner, tiny_model_dir: Path, tmp_path: Path) -> None:
    data, report = tmp_path / "data", tmp_path / "report.html"
    outcome = cli(
        *("example", "numbers", "--model", str(tiny_model_dir), "--data", str(data), "--report", str(report), "--json")
    )
    assert outcome.code == 0, outcome.err
    (found,) = outcome.json
    assert (found["example"], found["metric"], found["num_train"], found["num_held_out"]) == ("numbers", "chrf", 12, 12)
    assert [rival["model"] for rival in found["rivals"]][:2] == ["bare model", "instructed"]
    assert found["rivals"][2]["model"].endswith("-shot")
    for rival in found["rivals"]:
        assert rival["low"] <= rival["difference"] <= rival["high"]
        assert rival["difference"] == pytest.approx(found["tuned"]["value"] - rival["value"])
        assert rival["beaten"] == (rival["low"] > 0)
    assert found["tuned"]["low"] <= found["tuned"]["value"] <= found["tuned"]["high"]
    assert found["num_steps"] == 4
    assert set(found["answers"][0]) == {"input", "expected", "tuned", "bare model", "instructed", "few-shot"}
    assert report.read_text().startswith("<!doctype html>")
    kept = open_store(str(data / "prompts")).index().resolve(PromptReference.parse("numbers"))
    assert kept.version == 1, "the prompt stays in --data, for `softprompt up`"


@pytest.mark.slow
def test_an_example_with_running_services(cli: CliRunner, tiny_model_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "both").mkdir()
    with both_in_a_process(tiny_model_dir, tmp_path / "both", "--train") as (trainer, _):
        outcome = cli("example", "parity", "--trainer", trainer)
    assert outcome.code == 0, outcome.err
    lines = [" ".join(line.split()) for line in outcome.out.splitlines()]
    assert "accuracy on 12 held-out examples, with 95 % intervals" in lines
    table = lines[lines.index("MODEL ACCURACY TUNED IS BETTER BY") + 1 :]
    assert [line.split()[0] for line in table[:2]] == ["bare", "instructed"]
    assert all(line.endswith("beaten") for line in table[:-1])
    assert table[-1].startswith("tuned ")
    assert lines[0].startswith("input: number ")
