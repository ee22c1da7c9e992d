"""Real orphans of a parent that was killed with SIGKILL."""

from __future__ import annotations

import subprocess
import sys
import threading

import psutil

from trainer_service.cluster.watchdog import Watchdog, end

SLEEPER = [sys.executable, "-c", "import time; time.sleep(600)"]
KILLED_PARENT = f"""
import os, subprocess, psutil
from trainer_service.cluster.watchdog import Watchdog
sleepers = [subprocess.Popen({SLEEPER!r}, start_new_session=True, stdout=subprocess.DEVNULL) for _ in range(3)]
named, named_and_stopped, other = sleepers
psutil.Process(named_and_stopped.pid).suspend()
Watchdog().name(psutil.Process(child.pid) for child in (named, named_and_stopped))
print(named.pid, named_and_stopped.pid, other.pid, flush=True)
os.kill(os.getpid(), 9)
"""


def test_a_killed_parent_leaves_nothing_that_it_named_and_no_other_process_is_touched() -> None:
    printed = subprocess.run([sys.executable, "-c", KILLED_PARENT], stdout=subprocess.PIPE, check=False).stdout
    named, stopped, other = (psutil.Process(int(pid)) for pid in printed.split())
    try:
        psutil.wait_procs([named, stopped])
        assert other.is_running()
    finally:
        other.kill()


def test_close_waits_until_all_are_gone() -> None:
    with subprocess.Popen(SLEEPER) as sleeper:
        threading.Thread(target=sleeper.wait).start()  # else it would stay as a zombie
        watchdog = Watchdog()
        watchdog.name([psutil.Process(sleeper.pid)])
        watchdog.name([psutil.Process(sleeper.pid)])
        watchdog.close()
        assert sleeper.wait() != 0
        assert not psutil.pid_exists(watchdog.pid)


def test_a_number_that_was_given_to_another_process_is_left_alone() -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        end({other.pid: psutil.Process(other.pid).create_time() - 60}, grace_seconds=0)
        answer, _ = other.communicate("alive")
    assert answer == "alive", "a signal would have ended it before it read"
