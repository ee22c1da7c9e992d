"""The protocol's enums as `StrEnum`s: a value `PREFIX_NAME` is `Kind.NAME`, and `PREFIX_UNSPECIFIED` is None."""

from __future__ import annotations

import re
from enum import StrEnum
from functools import cache
from typing import Any, Generic, TypeVar

from shared.violations import Violations

Kind = TypeVar("Kind", bound=StrEnum)
EnumDescriptor = Any  # its type depends on protobuf's implementation (upb or Python)


class EnumTable(Generic[Kind]):
    """Reads one enum. Raises ValueError if a value of either side has no partner."""

    def __init__(self, enum: EnumDescriptor, kind: type[Kind]) -> None:
        names = {value.number: value.name.removeprefix(prefix_of(enum)) for value in enum.values if value.number != 0}
        if lonely := set(names.values()) ^ set(kind.__members__):
            raise ValueError(f"{kind.__name__} and the protocol's {enum.full_name} differ in {sorted(lonely)}")
        self.descriptor = enum
        self._kinds = {number: kind[name] for number, name in names.items()}

    def checked(self, number: int, field: str, violations: Violations | None) -> Kind | None:
        """The value; None for UNSPECIFIED, and for a number of a newer protocol, which is a violation if these are
        collected.
        """
        if violations is not None and number != 0 and number not in self._kinds:
            violations.add(field, f"{number} is not a value of this enum that this service knows")
        return self._kinds.get(number)


@cache
def table_of(enum: EnumDescriptor, kind: type[Kind]) -> EnumTable[Kind]:
    """The table of an enum that is found at run time."""
    return EnumTable(enum, kind)


def enum_number(enum: EnumDescriptor, value: StrEnum | str) -> int:
    """The number of a value by its name without the prefix, in any case. Raises ValueError with the allowed names."""
    name = prefix_of(enum) + str(value).upper()
    if name not in enum.values_by_name:
        raise ValueError(
            "allowed are " + ", ".join(item.name.removeprefix(prefix_of(enum)) for item in enum.values[1:])
        )
    return int(enum.values_by_name[name].number)


def prefix_of(enum: EnumDescriptor) -> str:
    """The prefix of the names of an enum's values: `TASK_KIND_` of `TaskKind`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", enum.name).upper() + "_"
