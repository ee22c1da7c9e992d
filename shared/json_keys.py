"""Stricter JSON than Python reads: hooks of `json` that refuse what readers disagree about."""

from __future__ import annotations

from typing import Any, NoReturn


class RepeatedKey(ValueError):
    """An object has a key twice. Python takes the last value, other readers the first."""


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An `object_pairs_hook`. Raises RepeatedKey, which names the key."""
    made = dict(pairs)
    if len(made) < len(pairs):
        seen = set[str]()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise RepeatedKey(f"the key {twice[:40]!r} is there twice")
    return made


def no_constant(name: str) -> NoReturn:
    """A `parse_constant`: raises ValueError for NaN and infinities."""
    raise ValueError(f"{name} is not JSON")
