"""The protocol's enums and the trainer's, as tables that are checked to be total when they are made."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Generic, TypeVar

from prompttuning.v1 import common_pb2, tuning_pb2

from shared.text.template import TemplateFormat
from shared.violations import Violations
from trainer_service.jobs.model import JobOrder
from trainer_service.jobs.states import JobState
from trainer_service.training.spec import InitMethod, Metric, Reparameterisation, Schedule, TaskKind, TooLong

Domain = TypeVar("Domain", bound=StrEnum)


class EnumTable(Generic[Domain]):
    """Pairs `PREFIX_NAME` with `Domain.NAME`; `PREFIX_UNSPECIFIED` is None. Raises ValueError if a value of either side
    has no partner.
    """

    def __init__(self, wire: Any, domain: type[Domain], prefix: str) -> None:
        self._from_wire = {number: domain[name.removeprefix(prefix)] for name, number in wire.items() if number != 0}
        self._to_wire = {value: number for number, value in self._from_wire.items()}
        if missing := set(domain) - set(self._to_wire):
            raise ValueError(f"{domain.__name__} has values that the protocol lacks: {sorted(missing)}")

    def to_wire(self, value: Domain | None) -> Any:
        """The protocol's number; generated code gives each enum a type of its own, hence Any."""
        return 0 if value is None else self._to_wire[value]

    def from_wire(self, number: int, field: str, violations: Violations) -> Domain | None:
        """None for UNSPECIFIED; also for a number that this build does not know, after adding it to `violations`."""
        if number != 0 and number not in self._from_wire:
            violations.add(field, f"{number} is not a value of this enum that this service knows")
        return self._from_wire.get(number)


TASKS = EnumTable(tuning_pb2.TaskKind, TaskKind, "TASK_KIND_")
TOO_LONG = EnumTable(tuning_pb2.TooLong, TooLong, "TOO_LONG_")
INIT_METHODS = EnumTable(tuning_pb2.PromptInit.Method, InitMethod, "METHOD_")
REPARAMETERISATIONS = EnumTable(tuning_pb2.Reparameterisation, Reparameterisation, "REPARAMETERISATION_")
SCHEDULES = EnumTable(tuning_pb2.LearningRateSchedule, Schedule, "LEARNING_RATE_SCHEDULE_")
METRICS = EnumTable(tuning_pb2.Metric, Metric, "METRIC_")
STATES = EnumTable(tuning_pb2.TuningJob.State, JobState, "STATE_")
ORDERS = EnumTable(tuning_pb2.ListTuningJobsRequest.Order, JobOrder, "ORDER_")
TEMPLATE_FORMATS = EnumTable(common_pb2.Template.Format, TemplateFormat, "FORMAT_")
