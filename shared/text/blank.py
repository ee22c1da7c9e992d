"""Invisible characters, blank texts, and texts that are not valid Unicode."""

from __future__ import annotations

_MARKS = "\u200b\u200e\u200f\u2060\ufeff"
SURROUNDINGS = "".join(filter(str.isspace, map(chr, range(0x3001)))) + _MARKS
"""White space, and what programs leave around copied texts: zero width spaces, marks of direction, word joiners, byte
order marks. Joiners of letters and emoji are part of a text.
"""
_INVISIBLE = dict.fromkeys(map(ord, _MARKS + "\u00ad"))
"""Characters that leave no trace where they are removed: these marks and the soft hyphen."""


def is_blank(text: str) -> bool:
    """Whether a text has nothing but `SURROUNDINGS`."""
    return not text.strip(SURROUNDINGS)


def without_invisible(text: str) -> str:
    """The text without zero width spaces, marks of direction, word joiners, byte order marks and soft hyphens."""
    return text.translate(_INVISIBLE)


def is_unicode(text: str) -> bool:
    """False if it has a lone surrogate, from an escape in JSON or from bytes that could not be decoded."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
