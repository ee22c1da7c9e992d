"""Masks that are not ready when the model has computed a step.

A slow guide delays its own answer and not the step: the step goes on without its sequence, which is paused and computes
its last position again when the mask is ready.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from inference_service.engine.core.running_request import RunningRequest

if TYPE_CHECKING:
    from inference_service.engine.guide.matcher import GuideProgress

MAX_WAIT_SECONDS = 0.005
"""Longest time that a step waits for all of its masks together."""

GuideOf = Callable[[RunningRequest], "GuideProgress | None"]


def late_masks(sequences: Iterable[RunningRequest], guide_of: GuideOf) -> set[RunningRequest]:
    """Wait for the masks of the sequences that have a guide; return the sequences whose mask is not ready then."""
    until = time.monotonic() + MAX_WAIT_SECONDS
    guided = [(sequence, guide) for sequence in sequences if (guide := guide_of(sequence)) is not None]
    return {sequence for sequence, guide in guided if not guide.wait(max(0.0, until - time.monotonic()))}


def still_paused(running: Iterable[RunningRequest], guide_of: GuideOf) -> list[RunningRequest]:
    """The paused sequences; those whose mask has become ready are resumed."""
    paused = [sequence for sequence in running if sequence.paused]
    for sequence in paused:
        guide = guide_of(sequence)
        sequence.paused = guide is not None and not guide.ready
    return [sequence for sequence in paused if sequence.paused]
