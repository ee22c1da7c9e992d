"""Progress: lines that fit the terminal, a line a minute elsewhere, and never silence."""

from __future__ import annotations

import io
import re
import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from rich.console import Console
from rich.text import Text

from shared.values.results import TuningProgress
from shared.wire.mirror import read
from softprompt.display.status import clock_text, flow
from softprompt.display.training import TrainingStatus, training_display
from softprompt.display.transfer import transfer_display, upload_display
from softprompt.types.events import JobEvent, ProgressMade
from tests.clock import Clock
from tests.softprompt.fakes import finished_events

EVENTS = [read(JobEvent, event) for event in finished_events()]
JOB_ID = "01jd3v8e4x7k9m2n5p8q1r4s7t"
NOW = datetime(2030, 1, 1, tzinfo=UTC)
HALF_WAY = TuningProgress(64, 200, 2.31, 1.0, 0.1, {"loss": 1.85}, 48, 12.5, NOW + timedelta(seconds=3725))


def console_of(terminal: bool, width: int = 160) -> tuple[Console, io.StringIO]:
    text = io.StringIO()
    return Console(file=text, force_terminal=terminal, width=width, color_system=None), text


def shown(terminal: bool, width: int = 160, events: list[JobEvent] = EVENTS, title: str = "version 1") -> str:
    console, text = console_of(terminal, width)
    with training_display(console, title) as show:
        for event in events:
            show(event)
    return text.getvalue()


def test_a_terminal_shows_step_loss_speed_time_left_and_held_out_loss() -> None:
    text = shown(terminal=True)
    for part in (
        "version 1: succeeded",
        "step 2/2",
        "loss 1.500",
        "held-out 1.750",
        "12.5 examples/s",
        "0:00 left",
        "a worker was lost",
    ):
        assert part in text


@pytest.mark.parametrize("width", [40, 80, 120, 240])
def test_every_part_is_whole_at_every_width(width: int) -> None:
    running = [replace(EVENTS[0], number=1), ProgressMade(number=2, time=NOW, progress=HALF_WAY)]
    drawn = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]|\r", "", shown(terminal=True, width=width, events=running, title=JOB_ID))
    lines = [line.rstrip() for line in drawn.splitlines()]
    for part in (f"{JOB_ID}: running", "step 64/200", "1:02:0", "loss 2.310", "held-out 1.850", "12.5 examples/s"):
        assert any(part in line for line in lines), (part, lines)
    assert "━━" in drawn
    assert max(Text(line).cell_len for line in lines) <= width


def test_parts_flow_into_lines_and_are_never_broken() -> None:
    parts = [Text(text) for text in ("aaaa", "bbb", "cc", "a part that is too long")]
    assert [line.plain for line in flow(parts, 9)] == ["aaaa  bbb", "cc", "a part t…"]
    assert [line.plain for line in flow(parts, 80)] == ["aaaa  bbb  cc  a part that is too long"]


def test_examples_that_are_being_prepared_are_counted() -> None:
    preparing = replace(HALF_WAY, step=0, num_steps=0, num_prepared=300, num_examples=40_000)
    status = TrainingStatus("job")
    status.update(ProgressMade(number=1, time=NOW, progress=preparing))
    assert status.details == ["prepared 300/40000 examples"]
    assert status.fraction == 300 / 40_000
    assert "prepared 300/40000 examples" in shown(True, 80, [ProgressMade(number=1, time=NOW, progress=preparing)])


def test_after_its_last_step_a_job_is_evaluating_until_it_ends() -> None:
    status = TrainingStatus("job")
    status.update(EVENTS[0])
    status.update(ProgressMade(number=2, time=NOW, progress=replace(HALF_WAY, step=200)))
    assert status.details[:2] == ["step 200/200", "evaluating"]
    for done, said in ((3, "evaluating: 3 of 5 models measured"), (5, "evaluating: writing answers")):
        end = NOW + timedelta(hours=2, seconds=30)
        progress = replace(HALF_WAY, step=180, num_measured=done, num_models=5, estimated_end_time=end)
        status.update(ProgressMade(number=3 + done, time=NOW, progress=progress))
        assert status.details[:2] == ["step 180/200", said], "after an early stop, too"
        assert status.details[2].startswith("2:00:"), "the time that is left"
    status.update(EVENTS[-1])
    assert status.details[:2] == ["step 2/2", "0:00 left"]


def test_without_a_terminal_changes_are_lines() -> None:
    assert shown(terminal=False).splitlines() == [
        "version 1: running",
        "version 1: running  step 1/2  loss 2.500  12.5 examples/s",
        "version 1: a worker was lost; the job goes on elsewhere",
        "version 1: succeeded  step 2/2  0:00 left  loss 1.500  held-out 1.750  12.5 examples/s",
    ]


def test_without_a_terminal_silent_work_is_reported_repeatedly() -> None:
    console, _ = console_of(terminal=False)
    enough = threading.Event()

    class Lines(io.StringIO):
        def write(self, part: str) -> int:
            if self.getvalue().count("running") > 5:
                enough.set()
            return super().write(part)

    console.file = Lines()
    with training_display(console, "job", line_seconds=0.001) as show:
        show(EVENTS[0])
        show(ProgressMade(number=2, time=NOW, progress=HALF_WAY))
        enough.wait()
    assert console.file.getvalue().splitlines()[-1].startswith("job: running  step 64/200  1:02:0")
    assert not [thread for thread in threading.enumerate() if thread.name == "status-lines"]


def test_the_time_left_is_read_on_the_trainers_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("softprompt.display.training.time", SimpleNamespace(monotonic=Clock()))
    for clock in (NOW, datetime.now(UTC)):
        status = TrainingStatus("job")
        end = clock + timedelta(seconds=75)
        status.update(ProgressMade(number=1, time=clock, progress=replace(HALF_WAY, estimated_end_time=end)))
        assert status.details[1] == "1:15 left"


@pytest.mark.parametrize(("seconds", "text"), [(5, "0:05"), (75, "1:15"), (3700, "1:01:40"), (-3, "0:00")])
def test_clock_texts(seconds: float, text: str) -> None:
    assert clock_text(seconds) == text


def test_a_transfer_that_is_over_at_once_is_no_line(monkeypatch: pytest.MonkeyPatch) -> None:
    console, text = console_of(terminal=False)
    with upload_display(console, "storing") as show:
        show(100, 100)
    assert text.getvalue() == ""
    monkeypatch.setattr("softprompt.display.transfer.QUIET_SECONDS", 0.0)
    with transfer_display(console, "tiny: looking for the model") as show_stage:
        show_stage("tiny: downloading", 25, 100)
        show_stage("tiny: downloading", 50, 100)
    assert text.getvalue() == "tiny: downloading  25 %  0:00 left\n"


def test_a_transfer_on_a_terminal_fits_forty_columns() -> None:
    console, text = console_of(terminal=True, width=40)
    with transfer_display(console, "smollm2-135m-instruct: looking for the model") as show:
        show("smollm2-135m-instruct: downloading", 25, 100)
    assert "smollm2-135m-instruct: downloading" in text.getvalue()
    assert "25 %" in text.getvalue()
