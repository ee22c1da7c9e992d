"""Training progress: a live bar on a terminal, lines where they are wanted, silence elsewhere."""

from __future__ import annotations

import io
from datetime import UTC, datetime, timedelta

import pytest
from rich.console import Console

from softprompt.client.mirror import read
from softprompt.display.training import time_left, training_display
from softprompt.types.tuning import JobEvent, TuningProgress
from tests.softprompt.fakes import finished_events

EVENTS = [read(JobEvent, event) for event in finished_events()]


def shown(terminal: bool, plain_lines: bool = False) -> str:
    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal, width=160, color_system=None)
    with training_display(console, "version 1", plain_lines) as display:
        for event in EVENTS:
            display.update(event)
    return text.getvalue()


def test_a_terminal_shows_step_loss_speed_time_left_and_held_out_loss():
    text = shown(terminal=True)
    for part in ("version 1: succeeded", "step 2/2", "loss 1.500", "held-out 1.750", "12.5 examples/s", "0:00 left", "a worker was lost"):
        assert part in text


def test_lines_where_they_are_wanted():
    assert shown(terminal=False, plain_lines=True).splitlines() == [
        "version 1: running",
        "version 1: step 1/2  loss 2.500  12.5 examples/s  - left",
        "version 1: step 1: held-out loss 1.750",
        "version 1: a worker was lost; the job goes on elsewhere",
        "version 1: succeeded",
    ]


def test_silence_elsewhere():
    assert shown(terminal=False) == ""


@pytest.mark.parametrize(("seconds", "text"), [(5, "0:05"), (75, "1:15"), (3700, "1:01:40"), (-3, "0:00")])
def test_time_left(seconds, text):
    now = datetime.now(UTC)
    progress = TuningProgress(1, 2, 1.0, 1.0, 0.1, {}, 0, 1.0, now + timedelta(seconds=seconds))
    assert time_left(progress, None) == text
    an_hour_off = TuningProgress(1, 2, 1.0, 1.0, 0.1, {}, 0, 1.0, now + timedelta(seconds=seconds + 3600))
    assert time_left(an_hour_off, now + timedelta(hours=1)) == text, "the trainer's clock is an hour ahead of this one"
