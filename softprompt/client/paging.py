"""Lists that a service answers in pages."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from shared.errors import InvalidInput

T = TypeVar("T")
PAGE_SIZE = 200


async def all_pages(
    page: Callable[[int, str], Awaitable[tuple[Sequence[T], str]]], limit: int | None = None
) -> list[T]:
    """The elements of every page, at most `limit`. `page(size, token)` returns elements and the next page's token,
    empty at the end. Raises InvalidInput for a negative `limit`.
    """
    if limit is not None and limit < 0:
        raise InvalidInput.of("limit", f"must be at least 0, is {limit}")
    found: list[T] = []
    if limit == 0:
        return found
    token = ""
    while True:
        elements, token = await page(PAGE_SIZE if limit is None else min(PAGE_SIZE, limit - len(found)), token)
        found += elements
        if not token or (limit is not None and len(found) >= limit):
            return found
