"""Request over version over service, within what room the input leaves."""

from __future__ import annotations

import pytest

from inference_service.generation import resolve
from shared.errors import InvalidInput
from shared.values.sampling import Sampling

SERVICE = Sampling(temperature=0.0, top_p=1.0, max_new_tokens=256)


def test_the_request_wins_then_the_version_then_the_service() -> None:
    version = Sampling(temperature=0.5, top_k=20, stop_sequences=("\n",))
    params = resolve(Sampling(temperature=0.9), version, SERVICE, room=1000, max_new_tokens=8192)
    assert (params.temperature, params.top_k, params.top_p, params.max_new_tokens) == (0.9, 20, 1.0, 256)
    assert params.stop_sequences == ("\n",)
    assert resolve(Sampling(stop_sequences=("#",)), version, SERVICE, 1000, 8192).stop_sequences == ("#",)


def test_an_explicit_zero_is_not_left_out() -> None:
    version = Sampling(temperature=0.5, top_k=20)
    params = resolve(Sampling(temperature=0.0, top_k=0), version, SERVICE, 1000, 8192)
    assert (params.temperature, params.top_k) == (0.0, 0)


def test_an_answer_ends_where_the_room_ends() -> None:
    assert resolve(Sampling(max_new_tokens=500), None, SERVICE, room=30, max_new_tokens=8192).max_new_tokens == 30
    assert resolve(Sampling(min_new_tokens=300), None, SERVICE, room=1000, max_new_tokens=8192).max_new_tokens == 300
    with pytest.raises(InvalidInput, match=r"sampling\.min_new_tokens"):
        resolve(Sampling(min_new_tokens=31), None, SERVICE, room=30, max_new_tokens=8192)


def test_a_seed_is_drawn_when_none_is_given() -> None:
    seeds = {resolve(Sampling(), None, SERVICE, 10, 10).seed for _ in range(20)}
    assert len(seeds) == 20
    assert resolve(Sampling(seed=0), None, SERVICE, 10, 10).seed == 0


def test_log_probabilities_are_asked_of_the_engine_as_of_the_service() -> None:
    wanted = {
        asked: resolve(Sampling(num_logprobs=asked), None, SERVICE, 10, 10).num_logprobs for asked in (None, 0, 1, 5)
    }
    assert wanted == {None: None, 0: 0, 1: 1, 5: 5}
