"""The command line on a real terminal: lines that fit, and output that goes where it was sent."""

from __future__ import annotations

import json

import pytest

from tests.softprompt.conftest import Services
from tests.softprompt.fakes import JOB
from tests.softprompt.reports import full_report
from tests.softprompt.terminals import run_on_terminal

pytestmark = pytest.mark.usefixtures("here")


@pytest.mark.parametrize("columns", [80, 40])
def test_training_is_readable(columns: int) -> None:
    code, shown, _ = run_on_terminal(columns, "jobs", "watch", JOB)
    assert code == 0
    lines = [line.rstrip() for line in shown.splitlines()]
    for part in ("job1: succeeded", "step 2/2", "0:00 left", "loss 1.500", "held-out 1.750", "12.5 examples/s"):
        assert any(part in line for line in lines), f"{part!r} is cut or not there: {lines}"


def test_json_goes_to_the_pipe_while_the_terminal_shows_the_progress() -> None:
    code, shown, piped = run_on_terminal(80, "jobs", "watch", JOB, "--json", pipe_stdout=True)
    assert code == 0
    assert [json.loads(line)["event"] for line in piped.splitlines()][-1] == "StateChanged"
    assert '"event"' not in shown
    assert "step 2/2" in shown


def test_a_report_is_a_summary_on_a_terminal_and_a_page_in_a_pipe(here: Services) -> None:
    here.trainer.reports = {JOB: full_report(JOB)}
    code, shown, _ = run_on_terminal(80, "jobs", "report", JOB)
    assert code == 0
    assert "<" not in shown
    for part in ("held-out loss", "published prompts/", "measured on", "jobs report job1 --open", "-o report.html"):
        assert part in shown
    code, shown, piped = run_on_terminal(80, "jobs", "report", JOB, pipe_stdout=True)
    assert (code, shown, piped[:15]) == (0, "", "<!doctype html>")
    assert run_on_terminal(80, "jobs", "report", JOB, "--format", "csv")[1].startswith("line,input,")
