"""Sampling parameters as keywords of a call: `client.generate("Hello", temperature=0.2)`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from shared.close_names import did_you_mean
from shared.errors import FieldViolation, InvalidInput
from shared.values.sampling import PARAMETERS, Sampling
from shared.values.sampling import SamplingKeywords as SamplingKeywords
from shared.violations import readable
from softprompt.types.type_names import type_name


def sampling_with(sampling: Sampling | Mapping[str, Any] | None, keywords: Mapping[str, Any]) -> Sampling | None:
    """`sampling` with the keywords in place of its values; None if nothing is given.

    Raises InvalidInput for an unknown keyword.
    """
    if not isinstance(sampling, Sampling | Mapping | None):
        raise InvalidInput.of("sampling", f"Sampling or a mapping is expected, not {type_name(sampling)}")
    with readable("sampling"):
        given = dict(sampling) if isinstance(sampling, Mapping) else {}
    values = {**given, **keywords}
    if unknown := [name for name in values if name not in PARAMETERS]:
        places = [name if name in keywords else f"sampling.{name}" for name in unknown]
        reasons = [_explanation(str(name)) for name in unknown]
        raise InvalidInput(list(map(FieldViolation, places, reasons)))
    if not values:
        return None if isinstance(sampling, Mapping) else sampling
    return replace(sampling, **values) if isinstance(sampling, Sampling) else Sampling(**values)


def _explanation(name: str) -> str:
    meant = did_you_mean(name, PARAMETERS)
    return f"is not a sampling parameter{meant or '; the parameters are ' + ', '.join(PARAMETERS)}"
