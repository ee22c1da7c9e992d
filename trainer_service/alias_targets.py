"""The targets of an alias as a caller gives them, checked and with the weights that the store keeps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

from shared.errors import InvalidInput
from shared.store.commit import MAX_TARGETS, MAX_WEIGHT, AliasTarget
from shared.values import prompts as values

_MAX_VERSION = 999_999_999


def stored_targets(targets: Sequence[values.AliasTarget]) -> tuple[AliasTarget, ...]:
    """Weights are ratios; they become whole numbers, as the store keeps them. Raises InvalidInput."""
    if len(targets) > MAX_TARGETS:
        raise InvalidInput.of("targets", f"has {len(targets)} entries; at most {MAX_TARGETS} are allowed")
    for index, target in enumerate(targets):
        if not 1 <= target.version <= _MAX_VERSION:
            raise InvalidInput.of(f"targets[{index}].version", f"{target.version} is not a version number")
        if not (math.isfinite(target.weight) and target.weight > 0):
            raise InvalidInput.of(f"targets[{index}].weight", f"must be above 0, not {target.weight}")
    weights = _whole_weights([float(target.weight) for target in targets])
    return tuple(AliasTarget(target.version, weight) for target, weight in zip(targets, weights, strict=True))


def _whole_weights(weights: Sequence[float]) -> list[int]:
    """Whole numbers as they are, else the smallest in these ratios: 0.9 and 0.1 are 9 and 1. Ratios beyond MAX_WEIGHT
    are rounded to it.
    """
    if all(weight.is_integer() and weight <= MAX_WEIGHT for weight in weights):
        return [int(weight) for weight in weights]
    fractions = [Fraction(weight).limit_denominator(10_000) for weight in weights]
    if all(fractions):
        whole = [int(fraction * math.lcm(*(item.denominator for item in fractions))) for fraction in fractions]
        whole = [weight // math.gcd(*whole) for weight in whole]
        if max(whole) <= MAX_WEIGHT:
            return whole
    return [max(1, round(weight / max(weights) * MAX_WEIGHT)) for weight in weights]
