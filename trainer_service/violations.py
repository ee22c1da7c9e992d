"""The collector of what is wrong with a request, so that it is refused once, with everything."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from shared.errors import FieldViolation, InvalidInput


class Violations:
    """Add what is found; raise at the end."""

    def __init__(self) -> None:
        self._found: list[FieldViolation] = []

    def __bool__(self) -> bool:
        return bool(self._found)

    def add(self, field: str, description: str) -> None:
        self._found.append(FieldViolation(field, description))

    @contextmanager
    def collected(self) -> Iterator[None]:
        """What the block finds wrong is added, and the block ends there."""
        try:
            yield
        except InvalidInput as error:
            self._found.extend(error.violations)

    def raise_if_any(self) -> None:
        if self._found:
            raise InvalidInput(self._found)
