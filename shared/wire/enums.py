"""The protocol's enums as `StrEnum`s: a value `PREFIX_NAME` is `Kind.NAME`, and `PREFIX_UNSPECIFIED` is None."""

from __future__ import annotations

import re
from enum import StrEnum
from functools import cache
from typing import Any, Generic, TypeVar

from prompttuning.v1 import common_pb2, generation_pb2, tuning_pb2

from shared.values import enums
from shared.violations import Violations

Kind = TypeVar("Kind", bound=StrEnum)
EnumDescriptor = Any  # its type depends on protobuf's implementation (upb or Python)


class EnumTable(Generic[Kind]):
    """Converts one enum both ways. Raises ValueError if a value of either side has no partner."""

    def __init__(self, enum: EnumDescriptor, kind: type[Kind]) -> None:
        names = {value.number: value.name.removeprefix(prefix_of(enum)) for value in enum.values if value.number != 0}
        if lonely := set(names.values()) ^ set(kind.__members__):
            raise ValueError(f"{kind.__name__} and the protocol's {enum.full_name} differ in {sorted(lonely)}")
        self.descriptor = enum
        self._kinds = {number: kind[name] for number, name in names.items()}

    def to_wire(self, value: Kind | None) -> Any:
        """The protocol's number; generated code gives each enum a type of its own, hence Any."""
        return 0 if value is None else enum_number(self.descriptor, value)

    def from_wire(self, number: int) -> Kind | None:
        """None for UNSPECIFIED and for a number of a newer protocol."""
        return self._kinds.get(number)

    def checked(self, number: int, field: str, violations: Violations | None) -> Kind | None:
        """Like `from_wire`; a number of a newer protocol is a violation, if these are collected."""
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


TASKS = EnumTable(tuning_pb2.TaskKind.DESCRIPTOR, enums.TaskKind)
TOO_LONG = EnumTable(tuning_pb2.TooLong.DESCRIPTOR, enums.TooLong)
INIT_METHODS = EnumTable(tuning_pb2.PromptInit.Method.DESCRIPTOR, enums.InitMethod)
REPARAMETERISATIONS = EnumTable(tuning_pb2.Reparameterisation.DESCRIPTOR, enums.Reparameterisation)
SCHEDULES = EnumTable(tuning_pb2.LearningRateSchedule.DESCRIPTOR, enums.LearningRateSchedule)
METRICS = EnumTable(tuning_pb2.Metric.DESCRIPTOR, enums.Metric)
STATES = EnumTable(tuning_pb2.TuningJob.State.DESCRIPTOR, enums.JobState)
ORDERS = EnumTable(tuning_pb2.ListTuningJobsRequest.Order.DESCRIPTOR, enums.JobOrder)
TEMPLATE_FORMATS = EnumTable(common_pb2.Template.Format.DESCRIPTOR, enums.TemplateFormat)
LOADED_STATES = EnumTable(generation_pb2.LoadedPrompt.State.DESCRIPTOR, enums.LoadedState)
