"""The protocol's enums as `StrEnum`s: a value `PREFIX_NAME` is `Kind.NAME`, and `PREFIX_UNSPECIFIED` is None."""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import StrEnum
from functools import cache
from typing import Any, TypeVar

from shared.violations import Violations

Kind = TypeVar("Kind", bound=StrEnum)
EnumDescriptor = Any  # its type depends on protobuf's implementation (upb or Python)


@cache
def enum_reader(enum: EnumDescriptor, kind: type[Kind]) -> Callable[[int, str, Violations | None], Kind | None]:
    """The function that reads the enum. Raises ValueError if a value of either side has no partner.

    It returns None for UNSPECIFIED, and for a number of a newer protocol, which is a violation if these are collected.
    """
    names = {value.number: value.name.removeprefix(prefix_of(enum)) for value in enum.values if value.number != 0}
    if lonely := set(names.values()) ^ set(kind.__members__):
        raise ValueError(f"{kind.__name__} and the protocol's {enum.full_name} differ in {sorted(lonely)}")
    kinds = {number: kind[name] for number, name in names.items()}

    def read(number: int, field: str, violations: Violations | None) -> Kind | None:
        if violations is not None and number != 0 and number not in kinds:
            violations.add(field, f"{number} is not a value of this enum that this service knows")
        return kinds.get(number)

    return read


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
