"""The quality benchmark on a directory of data sets: every contestant is scored, and nothing runs twice."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.quality import __main__ as quality
from benchmarks.quality import few_examples
from benchmarks.quality.contestants import PEFT, Arena
from benchmarks.quality.peft_recipes import PREFIX_TOKENS, Start, train_adapter
from benchmarks.quality.report import differences, interval, p_value
from benchmarks.quality.scoring import Prefixed, score_test
from benchmarks.quality.sets import load_sets
from shared.model.base_model import BaseModel, load
from shared.model.options import ModelOptions
from shared.text.template import TemplateFormat
from trainer_service.training.attention.forward import PlainForward
from trainer_service.training.attention.packing import Row
from trainer_service.training.evaluation.evaluate import evaluate_examples
from trainer_service.training.spec import Metric, TaskKind
from trainer_service.training.work import RowScore, ScoreWork


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
        "4:1e-2:2::PREFIX",
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
    assert len(runs) == 2 * 5
    ours = {"ours 4:1e-2:2", "ours 4:1e-2:2::PREFIX"}
    assert {run["contestant"] for run in runs} == {"bare", "instructed", "few-shot", *ours}
    assert all(len(run["right"]) == 8 for run in runs)
    assert all(("chrf" in run) == (run["set"] == "copy") for run in runs)
    assert "parity  10  ours 4:1e-2:2" in capsys.readouterr().out
    (tuned,) = [run for run in runs if run["contestant"] == "ours 4:1e-2:2" and run["set"] == "parity"]
    hidden = load(tiny_model_dir).info.hidden_size
    assert tuned["parameters"] == 4 * hidden
    assert 16 * hidden < tuned["bytes"] < 16 * hidden + 200
    before = output.stat().st_mtime_ns
    quality.main()
    assert output.stat().st_mtime_ns == before


@pytest.mark.filterwarnings("ignore:.*torch_dtype.*")
@pytest.mark.parametrize("name", PEFT)
def test_pefts_methods_train_and_their_scores_are_those_of_single_rows(
    name: str, sets: Path, base: BaseModel, tiny_model_dir: Path
) -> None:
    arena = Arena(base, str(tiny_model_dir), TemplateFormat.CHAT, 300)
    data = next(data for data in load_sets(sets, ["parity"], 6))
    start = Start(
        load(tiny_model_dir, ModelOptions(dtype="float32")), str(tiny_model_dir), "Is the number even or odd?", False
    )
    rows = [Row(example.input_ids, example.target_ids) for example in arena.test(data).examples]
    rows = [rows[0], replace(rows[1], input_ids=rows[1].input_ids[-3:]), rows[2]]
    untrained = train_adapter(PEFT[name], start, rows, 0, 0, 2).score_rows(rows)
    start = replace(start, base=load(tiny_model_dir, ModelOptions(dtype="float32")))
    adapter = train_adapter(PEFT[name], start, rows, 0, 12, 2)
    found = adapter.score_rows(rows)
    assert sum(score.log_probability for score in found) > sum(score.log_probability for score in untrained)
    for row, score in zip(rows, found, strict=True):
        assert adapter.score_rows([row])[0].log_probability == pytest.approx(score.log_probability, abs=1e-4)
        assert score.num_targets == len(row.target_ids)
    assert adapter.num_bytes > 4 * adapter.num_parameters
    assert len(adapter.answers([row.input_ids for row in rows], 3, {1})) == len(rows)


def test_the_prefix_and_lora_of_peft_start_where_they_should(base: BaseModel, tiny_model_dir: Path) -> None:
    row = Row((5, 6, 7), (8, 9))
    bare = sum_of(Prefixed(base, PlainForward(base), None).score_rows([row]))
    for name in ("LoRA", "IA3"):
        start = Start(load(tiny_model_dir, ModelOptions(dtype="float32")), str(tiny_model_dir), "text", False)
        assert sum_of(train_adapter(PEFT[name], start, [row], 0, 0, 1).score_rows([row])) == pytest.approx(bare)
    text = " ".join(["one two three"] * 30)
    ids = base.tokenizer(text)["input_ids"][:PREFIX_TOKENS]
    with_text = Row((*ids, *row.input_ids), row.target_ids)
    start = Start(load(tiny_model_dir, ModelOptions(dtype="float32")), str(tiny_model_dir), text, False)
    found = sum_of(train_adapter(PEFT["PEFT's prefix"], start, [row], 0, 0, 1).score_rows([row]))
    assert found == pytest.approx(sum_of(Prefixed(base, PlainForward(base), None).score_rows([with_text])), rel=1e-4)


def sum_of(scores: list[RowScore]) -> float:
    return sum(score.log_probability for score in scores)


def test_differences_are_paired_by_seed_and_row() -> None:
    torch.manual_seed(0)
    right = [int(mark) for mark in torch.bernoulli(torch.full((400,), 0.6))]
    better = [mark or int(index % 10 == 0) for index, mark in enumerate(right)]
    common: dict[str, Any] = {"model": "m", "dtype": "d", "format": "CHAT", "num_test": 400, "size": 64, "loss": 1.0}
    runs = [
        common | {"set": name, "seed": seed, "contestant": contestant, "right": "".join(map(str, marks))}
        for name in ("a", "b")
        for seed in (0, 1)
        for contestant, marks in (("ours", better), ("LoRA", right))
    ]
    runs.append(runs[1] | {"contestant": "bare", "size": 0, "seed": 0})
    another_draw = {"contestant": "IA3", "num_test": 200, "right": runs[1]["right"][:200]}
    runs.append(runs[1] | another_draw)
    lines = differences(runs)
    gained = sum(better) - sum(right)
    assert lines[0].startswith(f"ours - LoRA on a 64, 2 seeds, 400 test rows: {gained / 4:+.1f} points [")
    assert any(line.startswith("ours - bare on a 64, 2 seeds, 400 test rows") for line in lines)
    assert not any("IA3" in line for line in lines)
    assert any(line.startswith("ours - LoRA on 2 sets of 64") for line in lines)
    assert "p < 0.001" in lines[0]
    assert p_value([[0] * 100]) == 1.0


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
    found = score_test(Prefixed(base, forward, None), few_shot)
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
