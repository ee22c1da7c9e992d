"""Request over version over service, within what room the input leaves."""

from __future__ import annotations

import pytest

from inference_service.sampling import SamplingRequest
from shared.errors import InvalidInput
from shared.prompt.manifest import SamplingDefaults

SERVICE = SamplingDefaults(temperature=0.0, top_p=1.0, max_new_tokens=256)


def test_the_request_wins_then_the_version_then_the_service() -> None:
    version = SamplingDefaults(temperature=0.5, top_k=20, stop=("\n",))
    params = SamplingRequest(temperature=0.9).resolve(version, SERVICE, room=1000, max_new_tokens=8192)
    assert (params.temperature, params.top_k, params.top_p, params.max_new_tokens) == (0.9, 20, 1.0, 256)
    assert params.stop_sequences == ("\n",)
    assert SamplingRequest(stop_sequences=("#",)).resolve(version, SERVICE, 1000, 8192).stop_sequences == ("#",)


def test_an_explicit_zero_is_not_left_out() -> None:
    version = SamplingDefaults(temperature=0.5, top_k=20)
    params = SamplingRequest(temperature=0.0, top_k=0).resolve(version, SERVICE, 1000, 8192)
    assert (params.temperature, params.top_k) == (0.0, 0)


def test_an_answer_ends_where_the_room_ends() -> None:
    assert SamplingRequest(max_new_tokens=500).resolve(None, SERVICE, room=30, max_new_tokens=8192).max_new_tokens == 30
    assert (
        SamplingRequest(min_new_tokens=300).resolve(None, SERVICE, room=1000, max_new_tokens=8192).max_new_tokens == 300
    )
    with pytest.raises(InvalidInput, match=r"sampling\.min_new_tokens"):
        SamplingRequest(min_new_tokens=31).resolve(None, SERVICE, room=30, max_new_tokens=8192)


def test_a_seed_is_drawn_when_none_is_given() -> None:
    seeds = {SamplingRequest().resolve(None, SERVICE, 10, 10).seed for _ in range(20)}
    assert len(seeds) == 20
    assert SamplingRequest(seed=0).resolve(None, SERVICE, 10, 10).seed == 0


def test_log_probabilities_are_asked_of_the_engine_as_of_the_service() -> None:
    wanted = {
        asked: SamplingRequest(num_logprobs=asked).resolve(None, SERVICE, 10, 10).num_logprobs
        for asked in (None, 0, 1, 5)
    }
    assert wanted == {None: None, 0: 0, 1: 1, 5: 5}
