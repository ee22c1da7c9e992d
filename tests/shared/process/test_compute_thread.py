"""The number of torch threads is per thread, so each case runs in its own process."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import threading, torch
from shared.process.compute_thread import compute_in_this_thread
torch.set_num_threads(3)

def in_thread(function):
    found = []
    thread = threading.Thread(target=lambda: found.append(function()))
    thread.start()
    thread.join()
    return found[0]

def compute():
    assert compute_in_this_thread() == torch.get_num_threads()
    return torch.get_num_threads()

def resized():
    compute_in_this_thread(2)
    return torch.get_num_threads()

print(in_thread(compute), in_thread(torch.get_num_threads), in_thread(compute), in_thread(torch.get_num_threads))
print(in_thread(resized), in_thread(torch.get_num_threads), in_thread(compute))
"""


def test_one_thread_keeps_the_cores_and_later_ones_get_one() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["3", "1", "3", "1", "2", "1", "2"]
