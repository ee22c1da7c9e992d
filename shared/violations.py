"""Collects the violations of a request, so that callers can fix all fields in one attempt."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from shared.errors import FieldViolation, InvalidInput, SoftPromptError
from shared.location import Location, Move

T = TypeVar("T")
MAX_ITEMS = 1_000_000
"""Items of one list that a caller gives."""


class Violations:
    """The violations found so far."""

    def __init__(self, max_raised: int | None = None) -> None:
        """`max_raised`: how many of them are raised; None: all."""
        self._found: list[FieldViolation] = []
        self._max_raised = max_raised

    def __bool__(self) -> bool:
        return bool(self._found)

    def add(self, location: Location | str, description: str) -> None:
        """Adds a violation of one field."""
        self._found.append(FieldViolation(location, description))

    def result_of(self, read: Callable[[], T]) -> T | None:
        """The result of `read`, or None after adding what its InvalidInput names."""
        try:
            return read()
        except InvalidInput as error:
            self._found.extend(error.violations)
            return None

    @contextmanager
    def collected(self) -> Iterator[None]:
        """A block whose InvalidInput is caught: its violations are added, and execution continues after the block."""
        try:
            yield
        except InvalidInput as error:
            self._found.extend(error.violations)

    def complete(self, value: T | None) -> T:
        """The value, if there are no violations. Raises InvalidInput with all of them."""
        self.raise_if_any()
        if value is None:
            raise SoftPromptError("a request was refused without a reason")
        return value

    def raise_if_any(self) -> None:
        """Raises InvalidInput with the violations, if any."""
        if self._found:
            raise InvalidInput(self._found[: self._max_raised])


@contextmanager
def readable(place: Location | str) -> Iterator[None]:
    """A block that reads a caller's object, which may raise anything: errors that are not ours become InvalidInput."""
    try:
        yield
    except SoftPromptError:
        raise
    except Exception as error:
        raise InvalidInput.of(place, f"can't be read: {type(error).__name__}: {error}") from error


def items_of(source: Iterable[T], name: str, what: str = "the iterator", most: int | None = MAX_ITEMS) -> Generator[T]:
    """The items of a caller's list or generator. Raises InvalidInput with the index of an item that it can't give, and
    for more than `most` items: a generator may have no end.
    """
    index = 0
    try:
        for item in source:
            if index == most:
                raise InvalidInput.of(name, f"has more than {most} items; {what} must end")
            yield item
            index += 1
    except (SoftPromptError, GeneratorExit):
        raise
    except Exception as error:
        raise InvalidInput.of(f"{name}[{index}]", f"{what} raised {type(error).__name__}: {error}") from error


@contextmanager
def moved(move: Move) -> Iterator[None]:
    """A block whose InvalidInput names its places as the caller of the block knows them."""
    try:
        yield
    except InvalidInput as error:
        raise error.moved(move) from error
