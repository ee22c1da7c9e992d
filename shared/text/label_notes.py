"""Notes on the labels of a dataset: those that look the same, and those that are probably misspelt."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Mapping

from shared.text.blank import without_invisible

MAX_COMPARED_LABELS = 200
"""Of more labels, misspellings are not looked for: most labels are then rare."""
_RARE_SHARE, _CLOSE, _MIN_CHARS, _SHOWN = 0.25, 0.8, 4, 5
_DIGITS = re.compile(r"\d+")
_WHOLE_NUMBER = re.compile(r"^(-?\d+)\.0+$")


def label_notes(counts: Mapping[str, int]) -> list[str]:
    """Notes on labels that look the same, however frequent they are, and on `close_labels`; empty if there are none."""
    seen: dict[str, str] = {}
    twins: dict[str, str] = {}
    for label in sorted(counts, key=lambda label: -counts[label]):
        if (same := seen.setdefault(look(label), label)) != label:
            twins[label] = same
    rest = {label: count for label, count in counts.items() if label not in twins}
    if not twins:
        return close_labels(rest)
    named = [f"{label!a} ({counts[label]}) and {same!a} ({counts[same]})" for label, same in twins.items()]
    more = f" and {len(named) - _SHOWN} more" if len(named) > _SHOWN else ""
    note = f"labels that look the same but are different, with their examples: {', '.join(named[:_SHOWN])}{more}"
    return [f"{note}. Write each label in one way", *close_labels(rest)]


def look(label: str) -> str:
    """A label without what can't be seen: invisible characters, the Unicode form of letters, repeated space; and the
    decimals of a whole number, which programs add to a column with empty cells.
    """
    shown = without_invisible(label)
    return _WHOLE_NUMBER.sub(r"\1", " ".join(unicodedata.normalize("NFC", shown).split()))


def close_labels(counts: Mapping[str, int]) -> list[str]:
    """A note on rare labels that are close to a frequent one, with their counts; empty if there are none.

    Labels are close if they differ in case, space or Unicode form only, or in a few letters but not in the first one or
    in a digit: "2 stars" and "3 stars" are different labels, and so are "complete" and "incomplete".
    """
    if len(counts) > MAX_COMPARED_LABELS:
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
