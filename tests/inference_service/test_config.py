"""Settings: what an operator may set arrives where it is used."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from inference_service.config import InferenceSettings
from shared.config import ConfigError
from shared.names import NAME_PATTERN


def settings(**values: object) -> InferenceSettings:
    return InferenceSettings(base_model="model", store_url="store", **values)  # type: ignore[arg-type]


def test_model_and_store_are_required() -> None:
    with pytest.raises(ValidationError) as caught:
        InferenceSettings()
    assert {error["loc"][0] for error in caught.value.errors()} == {"base_model", "store_url"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_running", 0),
        ("default_temperature", -1),
        ("default_top_p", 0),
        ("replica", "Not A Name"),
        ("dtype", "int8"),
        ("poll_seconds", -1),
        ("guide_cache_bytes", -1),
    ],
)
def test_values_out_of_range_are_refused(name: str, value: object) -> None:
    with pytest.raises(ValidationError, match=name):
        settings(**{name: value})


def test_the_default_answer_is_not_longer_than_the_longest() -> None:
    with pytest.raises(ValidationError, match="max_new_tokens"):
        settings(max_new_tokens=10, default_max_new_tokens=11)


def test_the_engine_gets_its_knobs_and_enough_alternatives_for_the_golden_replay() -> None:
    made = settings(max_running=3, max_tokens_per_step=77, max_logprobs=0)
    assert (made.engine.max_running, made.engine.max_tokens_per_step) == (3, 77)
    assert made.engine.limits.max_logprobs >= 64
    assert made.sampling_limits.max_logprobs == 0


def test_a_replica_has_a_name_of_its_own() -> None:
    assert settings(replica="left").resolved_replica == "left"
    assert re.fullmatch(NAME_PATTERN, settings().resolved_replica)


def test_a_base_model_may_be_named_by_its_id_in_the_models_file(tmp_path: Path) -> None:
    path = tmp_path / "models.json"
    listed = [{"id": "large", "source": "/models/x", "dtype": "bfloat16", "weights": "q8_0"}]
    path.write_text(json.dumps({"models": listed}))
    given = InferenceSettings(store_url="s", models_file=path, base_model="large", dtype="float32", max_running=3)
    found = given.with_models_file()
    assert (found.base_model, found.base_model_id, found.dtype, found.weights, found.max_running) == (
        "/models/x",
        "large",
        "bfloat16",
        "q8_0",
        3,
    )
    assert found.device == "auto"
    for num_gpus, device in ((0, "cpu"), (1, "auto")):
        path.write_text(json.dumps({"models": [{**listed[0], "replicas": {"num_gpus": num_gpus}}]}))
        assert given.with_models_file().device == device
    other = given.model_copy(update={"base_model": "/models/other"})
    assert other.with_models_file() == other
    path.write_text('{"models": [{"id": "large", "source": "x", "workers": {"num_gpus": 1.5}}]}')
    with pytest.raises(ConfigError, match=r"SOFTPROMPT_INFERENCE_MODELS_FILE: .*models\.0\.workers\.num_gpus: 1\.5"):
        given.with_models_file()
