"""The demo's whole story on a tiny random model with the real services, and its end by Ctrl-C at several moments."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import httpx
import psutil
import pytest
from rich.console import Console

from shared.values.results import TuningProgress
from softprompt.demo.answers import AnswerTable
from softprompt.demo.curve import TrainingRecord, save_curve
from softprompt.demo.plan import DemoPlan
from softprompt.demo.promises import PromiseBroken, Promises
from softprompt.demo.run import ending, run_demo
from softprompt.types.events import Evaluated, ProgressMade

TINY = replace(
    DemoPlan(), num_virtual_tokens=4, first_steps=8, second_steps=4, evaluation_interval_steps=4, answer_tokens=8
)


@pytest.mark.usefixtures("one_thread")
def test_the_whole_story(tiny_model_dir: Path, tmp_path: Path) -> None:
    text = BrowsedOutput()
    run_demo(
        tiny_model_dir, tmp_path / "out", replace(TINY, answer_tokens=200), Console(file=text, width=200), stay=True
    )
    printed = text.getvalue()
    assert "<title>softprompt</title>" in text.page
    assert "product-descriptions@2" in text.models, "the demo's prompts can be tried while it stays"
    for promise in (
        "published prompts/product-descriptions/versions/1",
        "published prompts/product-descriptions/versions/2",
        "all 3 answers begun before the swap are version 1's",
        "all 3 begun after it are version 2's",
        "all 3 of version 1 went on to their end",
        "everything is stopped, no process is left",
    ):
        assert f"✓ {promise}" in printed
    assert "✗" not in printed
    assert (tmp_path / "out" / "loss-curve.png").read_bytes().startswith(b"\x89PNG")
    log = (tmp_path / "out" / "services.log").read_text()
    assert "trainer " in log
    assert "SIGTERM handler" not in log, "Ray's advice about signals is not for the operator of the service"


class BrowsedOutput(io.StringIO):
    """Opens the page whose address a demo that stays prints last, and then presses Ctrl-C."""

    page = models = ""

    def write(self, text: str) -> int:
        written = super().write(text)
        if address := re.search(r"In a browser:\n\s+(http://\S+)/\n\Z", self.getvalue()):
            url = address[1]
            threading.Thread(target=self.browse, args=(url,)).start()
        return written

    def browse(self, url: str) -> None:
        try:
            self.page, self.models = (httpx.get(f"{url}/{path}", timeout=None).text for path in ("", "v1/models"))
        finally:
            os.kill(os.getpid(), signal.SIGINT)


def test_a_demo_that_ends_says_how_to_stay() -> None:
    assert "make demo STAY=1" in ending(200, Path("out"), stayed=False)
    assert "STAY" not in ending(200, Path("out"), stayed=True)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("moment", ["Start the trainer", "version 1: running"])
def test_ctrl_c_leaves_nothing_behind(moment: str, tiny_model_dir: Path, tmp_path: Path) -> None:
    mark = f"demo-test-{os.getpid()}-{time.monotonic_ns()}"
    command = [
        sys.executable,
        "-u",
        "-m",
        "softprompt.cli",
        "demo",
        "--model",
        str(tiny_model_dir),
        "--out",
        str(tmp_path),
    ]
    environment = {**os.environ, "DEMO_TEST": mark}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        lines = []
        for line in process.stdout:
            lines.append(line)
            if moment in line:
                break
        assert moment in lines[-1], process.stderr.read()
        sessions = set[int]()
        for started in living(lambda it: it.environ().get("DEMO_TEST") == mark):
            with suppress(ProcessLookupError):  # it has ended since
                sessions.add(os.getsid(started.pid))
        sessions.discard(os.getsid(0))
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate()
    assert process.returncode == 130
    assert "no process is left" in output
    assert "Traceback" not in errors
    assert sessions or moment == "Start the trainer"
    assert living(lambda it: it.environ().get("DEMO_TEST") == mark or os.getsid(it.pid) in sessions) == []


def living(belongs: Callable[[psutil.Process], bool]) -> list[psutil.Process]:
    """Living processes of which that holds. (Ray's write a title over their environment, so a mark in it does not find
    them all.)
    """
    found = []
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE and belongs(process):
                found.append(process)
        except (psutil.Error, ProcessLookupError, PermissionError):
            continue
    return found


def test_a_broken_promise_fails_the_demo_before_anything_starts(tiny_model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(PromiseBroken, match="examples are not at"):
        run_demo(tiny_model_dir, tmp_path, replace(TINY, examples_dir=tmp_path), Console(file=io.StringIO()))


def test_promises_remember_what_was_broken() -> None:
    text = io.StringIO()
    promises = Promises(Console(file=text, width=200))
    assert promises.check(True, "kept")
    assert not promises.check(False, "bro[ken]")
    assert promises.broken == ["bro[ken]"]
    assert "✓ kept" in text.getvalue()
    assert "✗ bro[ken]" in text.getvalue()


def test_answers_stream_into_a_table_on_a_terminal() -> None:
    text = io.StringIO()
    with AnswerTable(Console(file=text, force_terminal=True, width=120), ["mouse"], ["bare", "tuned"]) as table:
        table.append(0, 0, "a dull ")
        table.append(0, 0, "text")
        table.append(0, 1, "a [bold] one")
    assert "a dull text" in text.getvalue()
    assert "a [bold] one" in text.getvalue()


def test_answers_are_printed_one_after_the_other_elsewhere() -> None:
    text = io.StringIO()
    with AnswerTable(Console(file=text, width=120), ["mouse", "lamp"], ["bare", "tuned"]) as table:
        for row in range(2):
            for column in range(2):
                table.append(row, column, f"{row}{column}\n")
    assert [line.strip() for line in text.getvalue().splitlines() if line.strip()] == [
        "input: mouse",
        "bare: 00",
        "tuned: 01",
        "input: lamp",
        "bare: 10",
        "tuned: 11",
    ]


def test_a_picture_of_two_trainings(tmp_path: Path) -> None:
    first, second = TrainingRecord("version 1", bare_loss=4.0), TrainingRecord("version 2")
    for record in (first, second):
        for step in range(1, 5):
            progress = TuningProgress(step, 4, 3.0 / step, 1.0, 0.1, {}, 0, 10.0, None)
            record.update(ProgressMade(number=step, time=None, progress=progress))
        record.update(Evaluated(number=8, time=None, step=0, metrics={"loss": 4.0}, is_best=False))
        record.update(Evaluated(number=9, time=None, step=4, metrics={"loss": 1.0}, is_best=True))
    assert (first.last_step, len(first.train), first.held_out) == (4, 4, [(4, 1.0)])
    path = save_curve([first, second], "title", tmp_path / "new" / "curve.png")
    assert path.stat().st_size > 10_000
