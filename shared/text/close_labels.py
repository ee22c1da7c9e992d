"""Finds rare labels that are probably misspellings of frequent ones."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Mapping

MAX_LABELS = 200
"""With more labels, none are compared: most are then rare."""
_RARE_SHARE, _CLOSE, _MIN_CHARS, _SHOWN = 0.25, 0.8, 4, 5
_DIGITS = re.compile(r"\d+")


def close_labels(counts: Mapping[str, int]) -> list[str]:
    """A note on rare labels that are close to a frequent one, with their counts; empty if there are none.

    Labels are close if they differ in case, space or Unicode form only, or in a few letters but not in the first one or
    in a digit: "2 stars" and "3 stars" are different labels, and so are "complete" and "incomplete".
    """
    if len(counts) > MAX_LABELS:
        return []
    found: dict[str, str] = {}
    for rare in sorted(counts, key=lambda label: -counts[label]):
        meant = [label for label in counts if counts[rare] <= _RARE_SHARE * counts[label] and _is_close(rare, label)]
        if meant:
            found[rare] = max(meant, key=lambda label: counts[label])
    if not found:
        return []
    named = [f"{rare!r} ({counts[rare]}) and {meant!r} ({counts[meant]})" for rare, meant in found.items()]
    more = f" and {len(named) - _SHOWN} more" if len(named) > _SHOWN else ""
    right = ",".join(f'"{label}"' if "," in label else label for label in counts if label not in found)
    return [
        f"labels that differ by a few letters, with their examples: {', '.join(named[:_SHOWN])}{more}. "
        f"If these are misspellings, `--labels {right}` refuses them and names their lines"
    ]


def _is_close(one: str, other: str) -> bool:
    one, other = (" ".join(unicodedata.normalize("NFKC", label).casefold().split()) for label in (one, other))
    if one == other:
        return True
    if min(len(one), len(other)) < _MIN_CHARS or one[0] != other[0]:
        return False
    if _DIGITS.findall(one) != _DIGITS.findall(other):
        return False
    return difflib.SequenceMatcher(None, one, other).ratio() >= _CLOSE
