"""Spans of time: their intersections, their total length, and the lead of some over others."""

from __future__ import annotations

from collections.abc import Sequence

Span = tuple[float, float]
"""Its begin and end, in seconds."""


def most_at_once(spans: Sequence[Span]) -> float:
    """The largest sum of the lengths of spans that have a moment in common."""
    lengths = (sum(end - begun for begun, end in spans if begun <= moment < end) for moment, _ in spans)
    return max(lengths, default=0.0)


def both(ones: Sequence[Span], others: Sequence[Span]) -> list[Span]:
    """The longest spans of time that are covered by spans of both."""
    marks = [
        (time, kind, step)
        for kind, spans in enumerate((ones, others))
        for span in spans
        for time, step in ((span[0], 1), (span[1], -1))
    ]
    open_spans, begun, found = [0, 0], 0.0, list[Span]()
    for time, kind, step in sorted(marks, key=lambda mark: (mark[0], -mark[2])):
        was = all(open_spans)
        open_spans[kind] += step
        if all(open_spans) and not was:
            begun = time
        elif was and not all(open_spans) and time > begun:
            found.append((begun, time))
    return found


def largest_lead(ones: Sequence[Span], others: Sequence[Span], window: Span) -> float:
    """By how many seconds the first spans cover more than the others, in that part of the window where it is most."""
    changes = [(time, step) for span in ones for time, step in ((span[0], 1), (span[1], -1))]
    changes += [(time, step) for span in others for time, step in ((span[0], -1), (span[1], 1))]
    active, lead, best, now = 0, 0.0, 0.0, window[0]
    for time, step in sorted([*changes, (window[1], 0)]):
        if (until := min(time, window[1])) > now:
            lead = max(0.0, lead + active * (until - now))
            best, now = max(best, lead), until
        active += step
    return best
