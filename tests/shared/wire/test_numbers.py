"""Durations, 32-bit floats and templates keep their values through messages."""

from __future__ import annotations

import math

import pytest
from google.protobuf.duration_pb2 import Duration
from hypothesis import given
from hypothesis import strategies as st
from prompttuning.v1 import common_pb2, tuning_pb2

from shared.text.template import Template, TemplateFormat
from shared.values.spec import PublishPolicy
from shared.violations import Violations
from shared.wire.fields import read_duration, short_float
from shared.wire.generation import read_sampling, read_template, write_sampling
from shared.wire.mirror import write


def wait(seconds: float) -> Duration:
    return write(PublishPolicy(wait_until_served_seconds=seconds), tuning_pb2.PublishPolicy()).wait_until_served


def test_a_duration_is_cut_to_the_longest_that_the_protocol_has() -> None:
    assert wait(math.inf).seconds == 315_576_000_000


@given(st.floats(0, 1e9))
def test_durations_survive(seconds: float) -> None:
    violations = Violations()
    assert read_duration(wait(seconds), "f", violations) == pytest.approx(seconds, abs=1e-9 * max(1.0, seconds))
    assert not violations


@pytest.mark.parametrize(
    "duration", [Duration(seconds=1, nanos=-1), Duration(seconds=2**62), Duration(nanos=2**31 - 1)]
)
def test_malformed_durations_are_violations(duration: Duration) -> None:
    violations = Violations()
    assert read_duration(duration, "f", violations) is None
    assert violations


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_short_floats_are_the_same_32_bit_number(value: float) -> None:
    assert common_pb2.SamplingParams(temperature=short_float(value)).temperature == value


def test_a_float_field_reads_as_the_caller_wrote_it() -> None:
    sampling = read_sampling(common_pb2.SamplingParams(temperature=0.7))
    assert sampling.temperature == 0.7
    assert write_sampling(sampling).temperature == common_pb2.SamplingParams(temperature=0.7).temperature


def test_a_template_keeps_that_its_format_was_left_open() -> None:
    assert read_template(common_pb2.Template(text="{input}!")).format is None
    whole = Template(text="{input}!", format=TemplateFormat.CHAT, system="s")
    assert read_template(write(whole, common_pb2.Template())) == whole
