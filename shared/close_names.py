"""Suggestions for misspelt names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name that `name` is probably meant to be, ignoring case; empty if none is close."""
    names = {item.casefold(): item for item in known}
    wanted = name.casefold()
    if wanted in names:
        return names[wanted]
    longer = [item for item in names if len(wanted) > 2 and item.startswith(wanted)]
    if found := difflib.get_close_matches(wanted, longer or names, 1):
        return names[found[0]]
    return names[longer[0]] if len(longer) == 1 else ""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; do you mean 'tone'?`, to be appended to an error; empty if no known name is close."""
    found = nearest(name, known)
    return f"; do you mean {found!r}?" if found else ""
