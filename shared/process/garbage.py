"""The collector of reference cycles while a process starts."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def paused_collector() -> Iterator[None]:
    """Pauses the collector for imports: modules stay, and it would look through all of them several times.

    That is a sixth of the processor time of importing torch, transformers and the trainer (1.1 of 6.5 seconds).
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
