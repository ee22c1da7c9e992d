"""Every enum of the protocol that has a table converts both ways."""

from __future__ import annotations

from enum import StrEnum

import pytest
from prompttuning.v1 import tuning_pb2

from shared.values.enums import TaskKind
from shared.violations import Violations
from shared.wire import enums
from shared.wire.enums import EnumTable, enum_number

TABLES = {name: table for name, table in vars(enums).items() if isinstance(table, EnumTable)}


@pytest.mark.parametrize("name", TABLES)
def test_every_value_survives_both_ways(name: str) -> None:
    table, violations = TABLES[name], Violations()
    numbers = [value.number for value in table.descriptor.values]
    assert len(numbers) > 2
    assert [table.to_wire(table.checked(number, "field", violations)) for number in numbers] == numbers
    assert table.from_wire(0) is None
    assert not violations
    assert table.from_wire(4711) is None
    assert table.checked(4711, "field", violations) is None
    assert violations


def test_a_table_that_is_not_total_is_refused() -> None:
    fewer = StrEnum("fewer", [(kind.name, kind.value) for kind in list(TaskKind)[1:]])  # type: ignore[misc]
    more = StrEnum("more", [*((kind.name, kind.value) for kind in TaskKind), ("RANKING", "RANKING")])  # type: ignore[misc]
    for kind, lonely in ((fewer, "GENERATION"), (more, "RANKING")):
        with pytest.raises(ValueError, match=lonely):
            EnumTable(tuning_pb2.TaskKind.DESCRIPTOR, kind)


def test_a_name_may_be_in_lower_case() -> None:
    assert enum_number(tuning_pb2.TaskKind.DESCRIPTOR, "chat") == tuning_pb2.TASK_KIND_CHAT
    with pytest.raises(ValueError, match="GENERATION, CHAT, CLASSIFICATION"):
        enum_number(tuning_pb2.TaskKind.DESCRIPTOR, "poetry")
