"""Collects the violations of a request, so that callers can fix all fields in one attempt."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from shared.errors import FieldViolation, InvalidInput


class Violations:
    """The violations found so far."""

    def __init__(self) -> None:
        self._found: list[FieldViolation] = []

    def __bool__(self) -> bool:
        return bool(self._found)

    def add(self, field: str, description: str) -> None:
        """Adds a violation of one field."""
        self._found.append(FieldViolation(field, description))

    @contextmanager
    def collected(self) -> Iterator[None]:
        """A block whose InvalidInput is caught: its violations are added, and execution continues after the block."""
        try:
            yield
        except InvalidInput as error:
            self._found.extend(error.violations)

    def raise_if_any(self) -> None:
        """Raises InvalidInput with all violations, if any."""
        if self._found:
            raise InvalidInput(self._found)
