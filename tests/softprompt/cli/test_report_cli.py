"""`softprompt jobs report`, `compare` and `curve` against a fake on a real socket."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest

from shared.errors import PreconditionFailed
from softprompt.client.sync_client import Client
from softprompt.display.chart import beside, chart
from tests.softprompt.cli_runner import CliRunner
from tests.softprompt.conftest import Services
from tests.softprompt.reports import full_report

OTHER = "tuningJobs/second"


@pytest.fixture
def cli(services: Services, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> CliRunner:
    monkeypatch.setenv("SOFTPROMPT_TRAINER", services.trainer_endpoint)
    services.trainer.reports = {name: full_report(name) for name in ("tuningJobs/job1", OTHER)}
    return CliRunner(monkeypatch, capfd)


def test_a_report_is_printed_written_or_shown(cli: CliRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli("jobs", "report", "job1").out.startswith("<!doctype html>")
    assert json.loads(cli("jobs", "report", "job1", "--format", "json").out)["job"]["name"] == "tuningJobs/job1"
    assert cli("jobs", "report", "job1", "--format", "csv").out.startswith("line,input,reference,tuned,")
    for name, begin in (("a.json", "{"), ("a.csv", "line"), ("a.html", "<!doctype"), ("page", "<!doctype")):
        outcome = cli("jobs", "report", "job1", "-o", str(tmp_path / name))
        assert outcome.code == 0
        assert (tmp_path / name).read_text().startswith(begin)
    shown = list[str]()

    def show(address: str) -> bool:
        shown.append(address)
        return True

    monkeypatch.setattr("webbrowser.open", show)
    assert cli("jobs", "report", "job1", "--open").code == 0
    assert Path(shown[0].removeprefix("file://")).read_text().startswith("<!doctype html>")
    assert cli("jobs", "report", "job1", "--open", "--format", "csv").code == 2
    assert cli("jobs", "report", "job1", "--open", "-o", str(tmp_path / "b.csv")).code == 2
    assert not (tmp_path / "b.csv").exists()
    refused = cli("jobs", "report", "job1", "--out", str(tmp_path / "a.pdf"))
    assert (refused.code, "'a.pdf' must end with .html, .json, .csv" in refused.err) == (2, True)
    assert cli("jobs", "report", "job1", "--output", str(tmp_path / "a.pdf"), "--format", "html").code == 0
    assert cli("jobs", "report", "gone").code == 3


def test_a_curve_fits_into_the_columns(cli: CliRunner) -> None:
    for columns in (20, 21, 80, 200):
        lines = cli("jobs", "curve", "job1", "--columns", str(columns)).out.splitlines()
        assert max(map(len, lines)) <= columns
        assert len(lines) >= 15
        assert "\x1b" not in "".join(lines)
    assert any(
        "held-out accuracy" in line for line in cli("jobs", "curve", "job1", "--metric", "accuracy").out.splitlines()
    )
    assert "there are accuracy, loss" in cli("jobs", "curve", "job1", "--metric", "blue").err
    assert cli("jobs", "curve", "job1", "--columns", "10").code == 2
    assert len(cli("jobs", "curve", "job1", "--json").json[0]["training"]) == 40


def test_jobs_are_compared(cli: CliRunner) -> None:
    outcome = cli("jobs", "compare", "job1", OTHER)
    assert outcome.code == 0
    lines = [" ".join(line.split()) for line in outcome.out.splitlines()]
    assert "learning_rate 0.025 0.027" in lines
    assert not [line for line in lines if line.startswith("num_steps")]
    assert "accuracy 0.75 (1 to 1.5) 0.75 (1 to 1.5)" in lines
    assert [line for line in lines if line.count("o held-out loss") == 2], "side by side"
    narrow = cli("jobs", "compare", "job1", OTHER, "--columns", "40").out
    assert narrow.count("o held-out loss") == 2
    assert cli("jobs", "compare", "job1", OTHER, "--json").json[0]["settings"] == {"learning_rate": ["0.025", "0.027"]}
    assert cli("jobs", "compare", "job1", "tuningJobs/job1").code == 2


def test_the_client_reads_reports(cli: CliRunner, services: Services) -> None:
    with Client(services.trainer_endpoint) as client:
        assert len(client.job_report("tuningJobs/job1").answers) == 12
        assert json.loads(client.job_report("tuningJobs/job1", answers=False).to_json())["answers"] == []
        job = client.get_job("tuningJobs/job1")
        assert len(job.report().answers) == 12
        assert not job.report(answers=False).answers
        copy = pickle.loads(pickle.dumps(job))
        assert copy == job
        with pytest.raises(PreconditionFailed, match="job_report"):
            copy.report()


@pytest.mark.parametrize("columns", [20, 33, 100, 200])
@pytest.mark.parametrize("points", [[], [(0, 1.0)], [(1, 2.0), (2, 2.0)], [(1, float("nan"))], [(5, -1e9), (7, 1e9)]])
def test_every_curve_can_be_drawn(columns: int, points: list[tuple[float, float]]) -> None:
    text = chart("a title that is longer than twenty characters", {"one": points, "two": points}, columns, utf8=False)
    assert max(map(len, text.splitlines())) <= columns
    assert text.isascii() or "…" in text
    assert max(map(len, beside([text, text], 2 * columns + 2, columns).splitlines())) <= 2 * columns + 2
