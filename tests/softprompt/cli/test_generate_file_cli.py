"""`softprompt generate --file` and `--compare`: order, other columns, failing rows, and going on after a stop."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from shared.errors import InvalidInput, NotFound, Unavailable
from tests.softprompt.cli_runner import CliRunner
from tests.softprompt.conftest import Services
from tests.waiting import wait_until

COMMAND = [sys.executable, "-m", "softprompt.cli"]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], services: Services) -> CliRunner:
    monkeypatch.setenv("SOFTPROMPT_TRAINER", services.trainer_endpoint)
    monkeypatch.setenv("SOFTPROMPT_INFERENCE", services.inference_endpoint)
    return CliRunner(monkeypatch, capsys)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_order_and_other_columns_are_kept_and_a_failing_row_says_why(
    cli: CliRunner, services: Services, tmp_path: Path
) -> None:
    source, out = tmp_path / "in.csv", tmp_path / "out.csv"
    source.write_text('id,text,note\n1,a,"x, y"\n2,,empty\n3,c,\n4,d\n5,"e\nf",z\n')
    done = cli("generate", "--file", str(source), "--out", str(out), "--prompt", "tone", "--temperature", "0.5")
    assert done.code == 1
    assert "2 of 5 answers are missing" in done.err
    rows = rows_of(out)
    assert [row["id"] for row in rows] == ["1", "2", "3", "", "5"]
    assert [row["answer"] for row in rows] == ["Hello wide world", "", "Hello wide world", "", "Hello wide world"]
    assert [row["answer_error"] for row in rows][1] == "line 3 text: is empty"
    assert "has 2 cells" in rows[3]["answer_error"]
    assert (rows[0]["note"], rows[4]["text"]) == ("x, y", "e\nf")
    assert all(request.sampling.temperature == 0.5 for request in services.inference.requests)
    assert len(services.inference.requests) == 3

    assert (
        cli("generate", "--file", str(source), "--out", str(out), "--prompt", "tone", "--temperature", "0.5").code == 1
    )
    assert len(services.inference.requests) == 3, "what has an answer is not asked again"
    other = cli("generate", "--file", str(source), "--out", str(out), "--prompt", "other")
    assert other.code == 2
    assert "belongs to a run with other options" in other.err


def test_a_run_goes_on_where_the_service_went_away(
    cli: CliRunner, services: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps({"input": f"text {number}"}) + "\n" for number in range(20)))
    command = ("generate", "--file", str(source), "--out", str(out), "--concurrency", "2")
    check = services.inference._check

    def fail_later(request: Any) -> None:
        if len(services.inference.requests) >= 9:
            raise Unavailable("the replica restarts")
        check(request)

    monkeypatch.setattr(services.inference, "_check", fail_later)
    stopped = cli(*command)
    assert stopped.code == 5
    assert "the same command continues there" in stopped.err
    assert not out.exists()
    journal = tmp_path / "out.jsonl.progress.jsonl"
    with journal.open("a") as file:
        file.write('{"row": 19, "column": "ans')  # as after kill -9
    monkeypatch.setattr(services.inference, "_check", check)
    services.inference.requests.clear()
    assert cli(*command).code == 0
    assert 0 < len(services.inference.requests) < 20
    written = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["input"] for row in written] == [f"text {number}" for number in range(20)]
    assert all(row["answer"] == "Hello wide world" for row in written)
    assert not journal.exists()
    assert cli(*command).code == 4, "a finished file is not overwritten"
    assert cli(*command, "--overwrite").code == 0


def test_a_slow_service_is_not_taken_for_a_full_disk(
    cli: CliRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def late(*_: Any, **__: Any) -> Any:
        raise TimeoutError("no answer in time")

    monkeypatch.setattr("softprompt.client.sync_client.Client.generate_many", late)
    source = tmp_path / "in.csv"
    source.write_text("text\na\nb\n")
    shown = cli("generate", "--file", str(source), "--out", str(tmp_path / "out.csv"))
    assert shown.code == 5
    assert "error: no answer in time" in shown.err
    assert "progress.jsonl" not in shown.err


def test_a_run_without_an_answer_leaves_no_file(
    cli: CliRunner, services: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Any) -> None:
        raise NotFound("prompt", "missing")

    monkeypatch.setattr(services.inference, "_check", refuse)
    source = tmp_path / "in.csv"
    source.write_text("text\na\nb\n")
    shown = cli("generate", "--prompt", "missing@1", "--file", str(source), "--out", str(tmp_path / "out.csv"))
    assert shown.code == 3
    assert "continues there" not in shown.err
    assert list(tmp_path.iterdir()) == [source]


def test_a_run_whose_rows_all_failed_is_repeated_by_the_same_command(
    cli: CliRunner, services: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Any) -> None:
        raise InvalidInput.of("input", "is not wanted")

    source = tmp_path / "in.csv"
    source.write_text("text\na\nb\n")
    command = ("generate", "--file", str(source), "--out", str(tmp_path / "out.csv"))
    with monkeypatch.context() as patched:
        patched.setattr(services.inference, "_check", refuse)
        assert "the same command asks for these again" in cli(*command).err
    assert cli(*command).code == 0
    assert {path.name for path in tmp_path.iterdir()} == {"in.csv", "out.csv"}


def test_ctrl_c_keeps_what_is_done(services: Services, tmp_path: Path) -> None:
    source = tmp_path / "in.csv"
    source.write_text("text\n" + "word\n" * 20_000)
    environment = {**os.environ, "SOFTPROMPT_INFERENCE": services.inference_endpoint}
    command = [*COMMAND, "generate", "--file", str(source), "--out", str(tmp_path / "out.csv")]
    journal = tmp_path / "out.csv.progress.jsonl"
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=environment, text=True) as process:
        wait_until(lambda: journal.exists() and journal.stat().st_size > 1000)
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        errors = process.stderr.read()
        assert process.wait() == 130
    assert "the same command continues there" in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize("suffix", ["xlsx", "parquet", "tsv", "jsonl"])
def test_other_formats(cli: CliRunner, tmp_path: Path, suffix: str) -> None:
    source, out = tmp_path / "in.csv", tmp_path / f"out.{suffix}"
    source.write_text("question,price\na,3\nb,4\n")
    assert cli("generate", "--file", str(source), "--out", str(out)).code == 0
    shown = cli("data", "preview", str(out), "--input", "question", "--output", "answer", "--drop-extra", "--json")
    assert shown.json == [{"input": text, "output": "Hello wide world"} for text in "ab"]


def test_mistakes_are_reported_before_any_request(cli: CliRunner, services: Services, tmp_path: Path) -> None:
    wide = tmp_path / "wide.csv"
    wide.write_text(",".join(f"c{number}" for number in range(20)) + "\n" + ",".join(["x"] * 20) + "\n")
    latin = tmp_path / "latin.csv"
    latin.write_bytes("text\ncaf\xe9\n".encode("latin-1"))
    there = tmp_path / "there.csv"
    there.write_text("text,answer\na,b\n")
    (tmp_path / "p.csv.progress.jsonl").write_text("[]\n")
    for arguments, code, said in (
        (("--file", str(tmp_path), "--out", "o.csv"), 2, "is a directory"),
        (("--file", str(wide), "--out", str(tmp_path / "p.csv"), "--input", "c3"), 2, "belongs to a run with other"),
        (("--file", str(tmp_path / "no.csv"), "--out", "o.csv"), 3, "does not exist"),
        (("--file", str(wide), "--out", str(tmp_path / "o.csv")), 2, "--input"),
        (("--file", str(wide), "--out", str(tmp_path / "o.csv"), "--input", "c 3"), 2, "no 'c 3'; do you mean 'c3'?"),
        (("--file", str(there), "--out", str(tmp_path / "o.csv")), 2, "--answer-column"),
        (("--file", str(wide), "--out", str(there)), 4, "--overwrite"),
        (("--file", str(wide), "--out", str(tmp_path)), 2, "is a directory"),
        (("text", "--file", str(wide)), 2, "either a TEXT or --file"),
        ((), 2, "either a TEXT or --file"),
        (("--file", str(latin), "--out", str(tmp_path / "o.csv")), 2, "--encoding"),
    ):
        refused = cli("generate", *arguments)
        assert refused.code == code, arguments
        assert said in " ".join(refused.err.replace("│", " ").split()), arguments
    assert services.inference.requests == []
    assert cli("generate", "--file", str(latin), "--encoding", "cp1252").out == (
        '{"text": "café", "answer": "Hello wide world"}\n'
    )


def test_an_error_of_every_row_ends_the_run(cli: CliRunner, tmp_path: Path) -> None:
    source = tmp_path / "in.csv"
    source.write_text("text\na\nb\n")
    assert cli("generate", "--file", str(source), "--out", str(tmp_path / "o.csv"), "--prompt", "unknown").code == 3


def test_prompts_are_compared(cli: CliRunner, services: Services, tmp_path: Path) -> None:
    done = cli(
        "generate", "hi", "--prompt", "tone", "--compare", "tone@1", "--compare", "base", "--max-new-tokens", "3"
    )
    assert done.out.splitlines()[::2] == ["--- tone (2)", "--- tone@1 (2)", "--- base (bare model)"]
    assert [request.input.prompt for request in services.inference.requests] == ["tone", "tone@1", ""]
    assert [item["prompt"] for item in cli("generate", "hi", "--compare", "tone", "--json").json] == ["base", "tone"]
    source, out = tmp_path / "in.csv", tmp_path / "out.csv"
    source.write_text("text\na\n")
    assert cli("generate", "--file", str(source), "--out", str(out), "--prompt", "tone", "--compare", "base").code == 0
    assert list(rows_of(out)[0]) == ["text", "answer", "answer_error", "answer base", "answer base_error"]
