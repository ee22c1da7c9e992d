"""Curves in a terminal, as text: from 20 columns on, without colours or a drawing library."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

Points = Sequence[tuple[float, float]]
MIN_COLUMNS, HEIGHT = 20, 12
_MARKS = "·o+x"
_ASCII_MARKS = ".o+x"


def chart(title: str, series: Mapping[str, Points], columns: int, *, utf8: bool) -> str:
    """Lines of at most `columns` characters (at least MIN_COLUMNS): the title, a grid with its lowest and highest value
    and last step, and the mark of each series. A later series covers an earlier one.
    """
    width = max(MIN_COLUMNS, columns)
    marks = _MARKS if utf8 else _ASCII_MARKS
    drawn = {name: [(step, value) for step, value in points if math.isfinite(value)] for name, points in series.items()}
    points = [point for some in drawn.values() for point in some]
    if not points:
        return "\n".join([_cut(title, width), _cut("  no points yet", width)])
    first, last = min(step for step, _ in points), max(step for step, _ in points)
    low, high = min(value for _, value in points), max(value for _, value in points)
    labels = {0: _short(high), HEIGHT - 1: _short(low)}
    margin = max(map(len, labels.values())) + 1
    grid = [[" "] * (width - margin - 1) for _ in range(HEIGHT)]
    for mark, some in zip(marks, drawn.values(), strict=False):
        for step, value in some:
            column = round((step - first) / (last - first or 1) * (len(grid[0]) - 1))
            row = round((high - value) / (high - low) * (HEIGHT - 1)) if high > low else HEIGHT // 2
            grid[row][column] = mark
    side, corner, line = ("│", "└", "─") if utf8 else ("|", "+", "-")
    rows = [f"{labels.get(number, ''):>{margin}}{side}{''.join(cells)}".rstrip() for number, cells in enumerate(grid)]
    rows.append(" " * margin + corner + line * len(grid[0]))
    begin, end = f"{first:g}", f"{last:g}"
    rows.append(" " * (margin + 1) + begin + end.rjust(len(grid[0]) - len(begin)))
    key = [f"{mark} {name}" for mark, (name, some) in zip(marks, drawn.items(), strict=False) if some]
    return "\n".join([_cut(title, width), *rows, *_wrapped(key, width)])


def beside(charts: Sequence[str], columns: int, width: int) -> str:
    """Charts of `width` columns in rows, as many beside each other as fit."""
    per_row = max(1, (columns + 2) // (width + 2))
    blocks = list[str]()
    for start in range(0, len(charts), per_row):
        parts = [text.splitlines() for text in charts[start : start + per_row]]
        longest = max(map(len, parts))
        padded = [[*part, *[""] * (longest - len(part))] for part in parts]
        rows = ("  ".join(f"{cell:<{width}}" for cell in row) for row in zip(*padded, strict=True))
        blocks.append("\n".join(map(str.rstrip, rows)))
    return "\n\n".join(blocks)


def _short(value: float) -> str:
    return f"{value:.3g}"


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def _wrapped(parts: Sequence[str], width: int) -> list[str]:
    """The parts on as few lines as fit; a longer part is cut."""
    lines = list[str]()
    for part in parts:
        if lines and len(lines[-1]) + 3 + len(part) <= width:
            lines[-1] += f"   {part}"
        else:
            lines.append(_cut(part, width))
    return lines
