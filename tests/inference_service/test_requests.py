"""Whatever bytes a message holds, reading it gives a request within the limits or InvalidInput with fields, and nothing
else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prompttuning.v1 import common_pb2, generation_pb2

from inference_service.generation import resolve
from inference_service.limits import RequestLimits
from inference_service.requests import RequestReader
from shared.errors import FieldViolation, InvalidInput
from shared.values.sampling import Sampling, SamplingLimits, SamplingParams

LIMITS = RequestLimits(SamplingLimits(), max_input_bytes=1000, max_length=100)
READER = RequestReader(LIMITS, vocab_size=300)
FLOAT = st.floats(width=32)
INT32, INT64 = st.integers(-(2**31), 2**31 - 1), st.integers(-(2**63), 2**63 - 1)

SAMPLING = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(
            ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"), FLOAT
        ),
        **{
            name: st.one_of(INT32, st.integers(0, 30))
            for name in ("top_k", "max_new_tokens", "min_new_tokens", "num_logprobs")
        },
        "seed": INT64,
        "stop_sequences": st.lists(st.text(max_size=300), max_size=20),
        "stop_token_ids": st.lists(INT32, max_size=20),
        "ignore_eos": st.booleans(),
        "guide": st.one_of(
            st.just(common_pb2.Guide()),
            st.lists(st.text(max_size=3), max_size=4).map(
                lambda texts: common_pb2.Guide(choices=common_pb2.Guide.Choices(texts=texts))
            ),
            *(
                st.builds(common_pb2.Guide, **{kind: st.text(max_size=9)})
                for kind in ("regex", "json_schema", "grammar")
            ),
        ),
        "logit_bias": st.dictionaries(INT32, FLOAT, max_size=3),
        "allowed_token_ids": st.lists(INT32, max_size=3),
        "forbidden_token_ids": st.lists(INT32, max_size=3),
        "n": INT32,
        "num_input_logprobs": INT32,
        "echo": st.booleans(),
    },
)


def attempt(read: Callable[[], Any]) -> tuple[Sequence[FieldViolation], Any]:
    """(what was wrong, None) or (nothing, what was read)."""
    try:
        return (), read()
    except InvalidInput as error:
        assert error.violations  # noqa: PT017 - both outcomes are right; what matters is that there is no third
        return error.violations, None


@settings(max_examples=300, deadline=None)
@given(SAMPLING)
def test_sampling_is_within_the_limits_or_refused(values: dict[str, object]) -> None:
    message = common_pb2.SamplingParams(**values)  # type: ignore[arg-type]
    violations, request = attempt(lambda: READER.sampling(message))
    assert all(violation.field.startswith("sampling.") and violation.description for violation in violations)
    if request is None:
        return
    most = LIMITS.sampling.max_new_tokens
    violations, params = attempt(
        lambda: resolve(request, None, Sampling(max_new_tokens=20), room=50, max_new_tokens=most)
    )
    assert {violation.field for violation in violations} <= {"sampling.min_new_tokens"}
    if params is None:
        return
    params.check("sampling", LIMITS.sampling)
    assert math.isfinite(params.temperature)
    assert params.max_new_tokens <= 50


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_any_message_that_parses_is_read_or_refused(data: bytes) -> None:
    request = generation_pb2.GenerateRequest()
    try:
        request.ParseFromString(data)
    except Exception:
        return  # gRPC refuses it before the service sees it
    violations, _ = attempt(lambda: READER.generation(request))
    assert all(violation.field for violation in violations)


@pytest.mark.parametrize("value", [0.7, 0.1, 1e-3, 9.999])
def test_a_32_bit_number_means_what_was_written(value: float) -> None:
    assert READER.sampling(common_pb2.SamplingParams(temperature=value)).temperature == value


def test_what_is_left_out_stays_left_out() -> None:
    assert READER.sampling(common_pb2.SamplingParams()) == Sampling()
    assert SamplingParams().check("sampling", LIMITS.sampling)
