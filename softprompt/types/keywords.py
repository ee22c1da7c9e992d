"""Sampling parameters as keywords of a call: `client.generate("Hello", temperature=0.2)`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypedDict

from shared.close_names import did_you_mean
from shared.errors import FieldViolation, InvalidInput
from shared.values.guide import Guide
from shared.values.sampling import PARAMETERS, Sampling
from shared.violations import readable
from softprompt.types.type_names import type_name


class SamplingKeywords(TypedDict, total=False):
    """The fields of `Sampling`, for type checkers; a test compares them. None or empty takes the version's default."""

    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    seed: int | None
    stop_sequences: tuple[str, ...]
    stop_token_ids: tuple[int, ...]
    max_new_tokens: int | None
    min_new_tokens: int | None
    ignore_eos: bool | None
    num_logprobs: int | None
    guide: Guide | Mapping[str, Any] | None
    logit_bias: Mapping[int, float] | None
    allowed_token_ids: tuple[int, ...]
    forbidden_token_ids: tuple[int, ...]
    n: int | None
    num_input_logprobs: int | None
    echo: bool | None


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
