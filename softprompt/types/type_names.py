"""How error texts and reports name types and lists."""

from __future__ import annotations

from collections.abc import Sequence

_NAMES: dict[type, str] = {
    dict: "an object",
    list: "a list",
    tuple: "a tuple",
    bytes: "bytes",
    type(None): "nothing",
    str: "text",
    bool: "a boolean",
    int: "a number",
    float: "a number",
}


def type_name(value: object) -> str:
    """The name of a value's type in error texts."""
    return _NAMES.get(type(value)) or f"a value of type {type(value).__name__}"


def listed(texts: Sequence[str], most: int) -> str:
    """The first `most` texts and the number of the others: `a, b and 3 more`."""
    more = f" and {len(texts) - most} more" if len(texts) > most else ""
    return ", ".join(texts[:most]) + more
