"""Text that shows nothing."""

from __future__ import annotations

SURROUNDINGS = "".join(filter(str.isspace, map(chr, range(0x3001)))) + "\u200b\u200e\u200f\u2060\ufeff"
"""White space and characters without a width, which programs leave around copied texts."""


def is_blank(text: str) -> bool:
    """Whether a text has nothing but white space and characters without a width."""
    return not text.strip(SURROUNDINGS)
