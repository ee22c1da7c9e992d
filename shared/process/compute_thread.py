"""Lets one thread of a process compute on all cores, and all other threads on one.

GNU OpenMP, which torch ships, creates a team of threads for each thread that has run a parallel region. Once all teams
together have more threads than there are cores, libgomp throttles spinning: idle threads sleep, and each of the
hundreds of small products of a step pays for a wake-up. Measured on two cores with SmolLM2-135M and one stream: 30 ms
per token with one team, 51 ms after another thread had once checked a prompt for NaN.
"""

from __future__ import annotations

import threading

import torch

_num_threads: int | None = None


def compute_in_this_thread(num_threads: int = 0) -> int:
    """Keep torch's number of threads for the calling thread, and return it.

    Threads that first use torch after this call use one core. `num_threads` replaces the number. Load a model in a
    thread that ends before this call: its team ends with it.
    """
    global _num_threads
    inherited = torch.get_num_threads()  # always called: the first call fixes the number that this thread inherits
    _num_threads = num_threads or _num_threads or inherited
    torch.set_num_threads(_num_threads)
    # Each thread has its own number, but a new thread inherits the number that any thread set last.
    others = threading.Thread(target=torch.set_num_threads, args=(1,), name="one-thread-for-others")
    others.start()
    others.join()
    return _num_threads
