"""The quality benchmark on a directory of data sets: every contestant is scored, and nothing runs twice."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.quality import __main__ as quality
from benchmarks.quality import few_examples
from benchmarks.quality.contestants import Arena
from benchmarks.quality.scoring import interval, score_test
from benchmarks.quality.sets import load_sets
from shared.model.base_model import BaseModel, load
from shared.model.options import ModelOptions
from shared.text.template import TemplateFormat
from trainer_service.training.attention.forward import PlainForward
from trainer_service.training.evaluation.evaluate import evaluate_examples
from trainer_service.training.spec import Metric, TaskKind
from trainer_service.training.work import ScoreWork


@pytest.fixture
def sets(tmp_path: Path) -> Path:
    for name, answers in (("parity", ["even", "odd"]), ("copy", [f"number {number}" for number in range(60)])):
        for part in ("train", "test"):
            rows = [{"input": f"{part} {number}", "output": answers[number % len(answers)]} for number in range(60)]
            (tmp_path / f"{name}.{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


@pytest.fixture(scope="module")
def base(tiny_model_dir: Path) -> BaseModel:
    return load(tiny_model_dir, ModelOptions(dtype="float32"))


def test_every_contestant_is_scored_once(
    sets: Path,
    tiny_model_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "quality.json"
    options = [
        "--sizes",
        "10",
        "--seeds",
        "0",
        "--only",
        "bare",
        "instructed",
        "few-shot",
        "--variants",
        "4:1e-2:2",
        "--test",
        "8",
    ]
    command = [
        "quality",
        "--model",
        str(tiny_model_dir),
        "--data",
        str(sets),
        "--dtype",
        "float32",
        "--output",
        str(output),
        *options,
    ]
    monkeypatch.setattr(sys, "argv", [*command, "--few-shot-tokens", "300", "--generate", "2"])
    quality.main()
    runs: list[dict[str, Any]] = json.loads(output.read_text())
    assert len(runs) == 2 * 4
    assert {run["contestant"] for run in runs} == {"bare", "instructed", "few-shot", "ours 4:1e-2:2"}
    assert all(len(run["right"]) == 8 for run in runs)
    assert all(("chrf" in run) == (run["set"] == "copy") for run in runs)
    assert "parity  10  ours 4:1e-2:2" in capsys.readouterr().out
    before = output.stat().st_mtime_ns
    quality.main()
    assert output.stat().st_mtime_ns == before


def test_what_rows_share_changes_no_score(sets: Path, base: BaseModel) -> None:
    arena = Arena(base, "", TemplateFormat.CHAT, 300)
    data = next(data for data in load_sets(sets, ["parity"], 8))
    assert data.task is TaskKind.CLASSIFICATION
    few_shot, shown = arena.few_shot(data, data.train)
    assert shown > 2
    work = evaluate_examples(None, few_shot)
    forward = PlainForward(base)
    request: Any = next(work)
    try:
        while True:
            assert isinstance(request, ScoreWork)
            request = work.send(arena_score(base, forward, request))
    except StopIteration as done:
        expected = done.value.metrics(Metric.LOSS)
    found = score_test(base, forward, None, few_shot)
    assert found.loss == pytest.approx(expected["loss"], rel=1e-4)
    assert sum(found.right) / 8 == expected["accuracy"]


def arena_score(base: BaseModel, forward: PlainForward, request: ScoreWork) -> Any:
    from trainer_service.training.compute import score

    return score(base, forward, [request])[0]


def test_an_interval_holds_the_mean_and_shrinks_with_rows() -> None:
    torch.manual_seed(0)
    few, many = (
        [[float(mark) for mark in torch.bernoulli(torch.full((count,), 0.7))] for _ in range(3)] for count in (50, 2000)
    )
    narrow, wide = interval(many), interval(few)
    assert narrow[0] < 0.7 < narrow[1]
    assert narrow[1] - narrow[0] < wide[1] - wide[0]


def test_few_examples_trains_on_the_sets_of_the_same_reader(
    sets: Path, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "few.json"
    options = [
        "--model",
        str(tiny_model_dir),
        "--data",
        str(sets),
        "--sets",
        "parity",
        "--sizes",
        "5",
        "--steps",
        "2",
        "--seeds",
        "0",
    ]
    monkeypatch.setattr(sys, "argv", ["few_examples", *options, "--output", str(output)])
    few_examples.main()
    (run,) = json.loads(output.read_text())["runs"]
    assert (run["set"], run["size"], run["num_train"], run["steps"]) == ("parity", 5, 4, 2)
    assert [step for step, _ in run["curve"]] == [0, 2]
    assert "accuracy" in run["curve"][0][1], "few different outputs are labels"
