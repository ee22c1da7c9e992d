"""Services as child processes: none outlives us, whatever ends us and whatever they do. Stand-ins take the services'
places.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from softprompt.local.process import Ready, ServiceFailed, ServiceProcess
from softprompt.local.services import RUN_VARIABLE, LocalConfig, LocalServices, kill, processes_of
from tests.waiting import until

STAND_IN = """
import json, os, signal, subprocess, sys, time
prefix = "SOFTPROMPT_" + NAME + "_"
behaviour = os.environ.get("STAND_IN_" + NAME, "serve")
if behaviour == "crash":
    print("no such model")
    sys.exit(3)
if behaviour == "refuse":
    print("serving soon")
    print("error: cannot listen on 127.0.0.1:1: another program uses this port")
    sys.exit(1)
if behaviour == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
else:
    signal.signal(signal.SIGTERM, lambda *_: (print("drained", flush=True), sys.exit(0)))
if behaviour == "leaky":  # in its own session, deaf to the end of its parent, and it holds the log's pipe
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
print("serving", flush=True)
target = os.environ[prefix + "READY_FILE"]
open(target + ".part", "w").write(json.dumps({"port": 1234, "metrics_port": 1235, "pid": os.getpid()}))
if behaviour != "slow":
    os.replace(target + ".part", target)
while behaviour != "dies" or not os.path.exists("may-die"):
    time.sleep(0.05)
sys.exit(4)
"""


@pytest.fixture
def stand_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory whose `trainer_service` and `inference_service` are found before the real ones."""
    for name in ("trainer", "inference"):
        package = tmp_path / f"{name}_service"
        package.mkdir()
        (package / "__init__.py").write_text("")
        (package / "__main__.py").write_text(f"NAME = {name.upper()!r}\n{STAND_IN}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def lines() -> list[tuple[str, str]]:
    return []


@pytest.fixture
def services(stand_ins: Path, lines: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalServices]:
    monkeypatch.setattr("softprompt.local.services.RAY_END_SECONDS", 0.5)
    made = LocalServices(
        LocalConfig(stand_ins / "model", stand_ins / "data", grace_seconds=1),
        lambda name, line: lines.append((name, line)),
    )
    yield made
    assert kill(made.run) == 0, "a process was left"


async def test_both_serve_within_and_nothing_is_left_after(
    services: LocalServices, lines: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_IN_TRAINER", "leaky")
    monkeypatch.setenv("STAND_IN_INFERENCE", "leaky")
    async with services:
        assert services.trainer_endpoint == services.inference_endpoint == "127.0.0.1:1234"
        assert len(services.alive()) == 4
    assert services.alive() == []
    assert ("trainer", "serving") in lines
    assert ("inference", "drained") in lines


async def test_a_service_that_crashes_at_start_is_reported_with_its_last_lines(
    services: LocalServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_IN_INFERENCE", "crash")
    with pytest.raises(ServiceFailed, match="the inference service ended with exit code 3:\n  no such model"):
        await services.__aenter__()
    assert services.alive() == []


async def test_the_reason_of_a_service_that_can_not_start_is_one_sentence(
    services: LocalServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_IN_INFERENCE", "refuse")
    with pytest.raises(ServiceFailed) as failed:
        await services.__aenter__()
    reason = "cannot listen on 127.0.0.1:1: another program uses this port"
    assert str(failed.value) == f"the inference service ended: {reason}"
    assert services.alive() == []


async def test_a_service_that_never_gets_ready_is_stopped(
    services: LocalServices, lines: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_IN_TRAINER", "slow")
    ready = ServiceProcess.ready

    async def ready_soon(self: ServiceProcess, timeout_seconds: float) -> Ready:
        if self.name != "trainer":
            return await ready(self, timeout_seconds)
        await until(lambda: ("trainer", "serving") in lines)
        return await ready(self, 1.0)

    monkeypatch.setattr(ServiceProcess, "ready", ready_soon)
    with pytest.raises(ServiceFailed, match=r"trainer is not ready after 1 s:\n  serving"):
        await services.__aenter__()
    assert services.alive() == []


async def test_a_service_that_ends_by_itself_is_noticed(
    services: LocalServices, stand_ins: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_IN_TRAINER", "dies")
    async with services:
        (stand_ins / "may-die").touch()
        failure = await services.failure()
    assert "trainer ended with exit code 4" in str(failure)


async def test_a_deaf_service_is_killed(
    services: LocalServices, lines: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_IN_TRAINER", "deaf")
    monkeypatch.setattr("softprompt.local.services.DRAIN_MARGIN_SECONDS", 0.0)
    async with services:
        pass
    assert services.alive() == []
    assert any("killed" in line for _, line in lines)


async def test_a_cancelled_start_leaves_nothing(services: LocalServices, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAND_IN_TRAINER", "slow")
    task = asyncio.create_task(services.__aenter__())
    while len(services.alive()) < 2:
        await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert services.alive() == []


@pytest.fixture
def up(stand_ins: Path) -> Iterator[Any]:
    """`softprompt up` over the stand-ins, once it says that it serves."""
    model = stand_ins / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    command = [
        sys.executable,
        "-m",
        "softprompt.cli",
        "up",
        "--no-gateway",
        "--json",
        "--model",
        str(model),
        "--data",
        str(stand_ins / "data"),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        endpoints = json.loads(process.stdout.readline())
        assert endpoints["trainer"] == "127.0.0.1:1234"
        children = psutil.Process(process.pid).children(recursive=True)
        run = children[0].environ()[RUN_VARIABLE]
        yield process, run
        process.kill()
    kill(run)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_up_stops_both_on_a_signal(up: Any, number: Any) -> None:
    process, run = up
    process.send_signal(number)
    _, errors = process.communicate()
    assert process.returncode == 0
    assert processes_of(run) == []
    assert "inference  drained" in errors
    assert "Traceback" not in errors


@pytest.fixture
def deaf_trainer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAND_IN_TRAINER", "deaf")


def test_up_ends_at_once_on_a_second_signal(deaf_trainer: None, up: Any) -> None:
    process, run = up
    process.send_signal(signal.SIGINT)
    while "drained" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    process.communicate()
    assert processes_of(run) == []


def test_services_drain_when_up_is_killed(up: Any) -> None:
    process, run = up
    services = [found for found in processes_of(run) if "_service" in " ".join(found.cmdline())]
    assert len(services) == 2
    process.kill()
    process.wait()
    psutil.wait_procs(services)


def test_up_fails_when_a_service_dies(stand_ins: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAND_IN_INFERENCE", "dies")
    (stand_ins / "config.json").write_text("{}")
    command = [sys.executable, "-m", "softprompt.cli", "up", "--json", "--no-gateway", "--model", str(stand_ins)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as up:
        assert up.stdout is not None
        assert up.stdout.readline(), "it says where both serve"
        (stand_ins / "may-die").touch()
        _, errors = up.communicate()
    assert up.returncode == 1
    assert "inference service ended with exit code 4" in errors


def test_a_child_whose_parent_is_gone_does_not_start(tmp_path: Path) -> None:
    mark = tmp_path / "started"
    command = [sys.executable, "-m", "softprompt.local.child", "1", sys.executable, "-c", f"open({str(mark)!r}, 'w')"]
    assert subprocess.run(command).returncode == 1
    assert not mark.exists()


def test_only_marked_processes_are_found() -> None:
    run = "test-run-" + str(os.getpid())
    other = subprocess.Popen(["sleep", "60"])
    marked = subprocess.Popen(["sleep", "60"], env={**os.environ, RUN_VARIABLE: run}, start_new_session=True)
    try:
        assert [process.pid for process in processes_of(run)] == [marked.pid]
        assert kill(run) == 1
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()
        marked.wait()


def test_paths_are_given_whole(stand_ins: Path) -> None:
    """The services may not share our working directory."""
    config = LocalConfig(Path("model"), Path("data"))
    assert config.trainer_settings()["SOFTPROMPT_TRAINER_DATA_DIR"] == str(stand_ins / "data")
    assert config.inference_settings()["SOFTPROMPT_INFERENCE_STORE_URL"] == str(stand_ins / "data" / "prompts")
    # beside the rest, since the user's cache can be read-only
    assert config.inference_settings()["SOFTPROMPT_INFERENCE_USAGE_DIR"] == str(stand_ins / "data" / "usage")
