"""One thread of a process computes on all cores.

GNU's OpenMP, which torch brings along, gives each thread that ever ran something in parallel a team of its own. As soon
as all teams together have more members than there are cores, none spins for its next piece any more (libgomp's
throttled spin count): they sleep, and a step of hundreds of small products pays a wake-up for each. Measured on two
cores, SmolLM2-135M, one stream: 30 ms a token with one team, 51 ms beside the team of a thread that once looked a
prompt through for NaN.
"""

from __future__ import annotations

import threading

import torch

_num_threads: int | None = None


def compute_in_this_thread() -> None:
    """The calling thread keeps torch's number of threads; every thread that uses torch for the first time after this
    computes alone.

    What computed before (loading a model) is best done in a thread that has ended: its team ends with it.
    """
    global _num_threads
    inherited = torch.get_num_threads()  # asked for in any case: the first question settles what this thread inherits
    _num_threads = _num_threads or inherited
    torch.set_num_threads(_num_threads)
    # The number is each thread's own, but what a new one starts with is what was set last, by any thread.
    others = threading.Thread(target=torch.set_num_threads, args=(1,), name="one-thread-for-others")
    others.start()
    others.join()
