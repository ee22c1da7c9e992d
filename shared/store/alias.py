"""The new value of an alias, and the value that a caller expects it to have before: types and checks."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Final, Literal

from shared.errors import Conflict, InvalidInput
from shared.store.commit import MAX_TARGETS, MAX_WEIGHT, AliasTarget
from shared.store.index import PromptRecord, render_targets

Targets = int | Sequence[AliasTarget]
"""One version, or several that share the traffic."""


class _Anything(Enum):
    ANYTHING = "anything"


ANYTHING: Final = _Anything.ANYTHING
"""Accept any current value of the alias."""

Expected = Targets | None | Literal[_Anything.ANYTHING]
"""None: the alias must not exist."""


def as_targets(target: Targets, field: str = "target") -> tuple[AliasTarget, ...]:
    """The targets, checked and sorted by version. Raises InvalidInput for `field`."""
    targets = (
        (AliasTarget(target),) if isinstance(target, int) else tuple(sorted(target, key=lambda part: part.version))
    )
    if not 1 <= len(targets) <= MAX_TARGETS:
        raise InvalidInput.of(field, f"an alias must name 1 to {MAX_TARGETS} versions, not {len(targets)}")
    if len({part.version for part in targets}) != len(targets):
        raise InvalidInput.of(field, "names a version twice")
    for part in targets:
        if not 1 <= part.weight <= MAX_WEIGHT:
            raise InvalidInput.of(
                field, f"the weight of version {part.version} must be 1 to {MAX_WEIGHT}, not {part.weight}"
            )
    return (AliasTarget(targets[0].version),) if len(targets) == 1 else targets


def check_expected(record: PromptRecord | None, prompt: str, alias: str, expected: Expected) -> None:
    """Raises Conflict, with the `current` value in its metadata, if the alias doesn't have the expected value."""
    if expected is ANYTHING:
        return
    current = record.aliases.get(alias) if record else None
    current_targets = current.targets if current else ()
    expected_targets = () if expected is None else as_targets(expected, "expected")
    if current_targets != expected_targets:
        found, wanted = render_targets(current_targets), render_targets(expected_targets)
        raise Conflict(f"{prompt}@{alias} names {found}, not {wanted}", current=found, expected=wanted)
