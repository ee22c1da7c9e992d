"""Errors in a caller's data, collected and reported as one error for the whole source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from shared.errors import FieldViolation, InvalidInput
from shared.location import Location

_PLACES_SHOWN = 3
_KINDS_SHOWN = 5
MAX_PROBLEMS = 100_000
"""Reading ends after this many: a Python iterator may be endless."""


class Unusable(Exception):
    """A part of an example can't be used. Errors of the same `kind` are reported as one."""

    def __init__(self, reason: str, part: str = "", kind: str = "") -> None:
        super().__init__(reason)
        self.reason, self.part, self.kind = reason, part, kind or reason


class UnusableData(InvalidInput):
    """Data that can't be read as examples. Has a violation for each kind of error, whose field is the first place of
    it. `source`: the file's name, if any. `fix`: options of the command line that would resolve the errors; `advice`:
    further advice.
    """

    def __init__(
        self, source: str, violations: Sequence[FieldViolation], fix: Mapping[str, str] | None = None, advice: str = ""
    ) -> None:
        super().__init__(violations)
        self.source, self.fix, self.advice = source, dict(fix or {}), advice
        if source:
            self.message = f"{source}: {self.message}"
            self.args = (self.message,)


class Problems:
    """Errors by kind. Uses bounded memory: the first places and a count of each kind."""

    def __init__(self, source: str, which: str) -> None:
        self._source, self._which = source, which
        self._kinds: dict[str, _Kind] = {}
        self._count = 0
        self.fix: dict[str, str] = {}
        self.advice = ""

    def __bool__(self) -> bool:
        return bool(self._kinds)

    @property
    def are_too_many(self) -> bool:
        """Whether reading should end here."""
        return self._count >= MAX_PROBLEMS

    def add(self, place: Location, error: Unusable) -> None:
        """Add an error in a row."""
        found = self._kinds.setdefault(error.kind, _Kind(error.reason, error.part))
        found.count += 1
        self._count += 1
        if len(found.places) < _PLACES_SHOWN:
            found.places.append(place)

    def error(self) -> UnusableData:
        """The exception for all errors, the most frequent kinds first."""
        kinds = sorted(self._kinds.values(), key=lambda kind: -kind.count)
        violations = [
            FieldViolation(
                replace(kind.places[0], source=self._which, path=Location.parse(kind.part).path), kind.description()
            )
            for kind in kinds[:_KINDS_SHOWN]
        ]
        if rest := kinds[_KINDS_SHOWN:]:
            more = f"{sum(kind.count for kind in rest)} more errors of {len(rest)} other kinds"
            violations.append(FieldViolation(self._which, more))
        if self.are_too_many:
            violations.append(FieldViolation(self._which, f"reading ended after {MAX_PROBLEMS} unusable examples"))
        return UnusableData(self._source, violations, self.fix, self.advice)


class _Kind:
    def __init__(self, reason: str, part: str) -> None:
        self.reason, self.part = reason, part
        self.count = 0
        self.places: list[Location] = []

    def description(self) -> str:
        if self.count == 1:
            return self.reason
        unit = self.places[0].unit
        others = ", ".join(place.row_text.removeprefix(unit).strip() for place in self.places[1:])
        rest = self.count - len(self.places)
        plural = f"{unit}s " if unit and self.count > 2 else f"{unit} ".lstrip()
        return f"{self.reason} (also {plural}{others}" + (f" and {rest} more)" if rest else ")")
