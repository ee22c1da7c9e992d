"""A bad setting stops the start, naming the variable and what was expected."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from shared.config import ConfigError, describe_settings, load_settings
from trainer_service.base_models import BaseModelSource
from trainer_service.config import TrainerSettings
from trainer_service.jobs.config import JobsConfig

PREFIX = "SOFTPROMPT_TRAINER_"


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"{PREFIX}BASE_MODELS", "small=/models/Small")


def test_base_models_are_ids_with_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"{PREFIX}BASE_MODELS", "small=/models/x, HuggingFaceTB/SmolLM2-135M-Instruct ,/models/Qwen3/")
    assert load_settings(TrainerSettings).sources == (
        BaseModelSource("small", "/models/x"),
        BaseModelSource("smollm2-135m-instruct", "HuggingFaceTB/SmolLM2-135M-Instruct"),
        BaseModelSource("qwen3", "/models/Qwen3/"),
    )


def test_everything_lives_in_the_data_directory_unless_said_otherwise(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(f"{PREFIX}DATA_DIR", str(tmp_path))
    settings = load_settings(TrainerSettings)
    assert settings.resolved_store_url == str(tmp_path / "prompts")
    assert settings.resolved_database_url == f"sqlite:///{tmp_path}/jobs.sqlite3"
    assert settings.datasets_dir == tmp_path / "datasets"
    monkeypatch.setenv(f"{PREFIX}STORE_URL", "s3://bucket/prompts")
    monkeypatch.setenv(f"{PREFIX}DATABASE_URL", "postgresql+psycopg://db/jobs")
    settings = load_settings(TrainerSettings)
    assert (settings.resolved_store_url, settings.resolved_database_url) == (
        "s3://bucket/prompts",
        "postgresql+psycopg://db/jobs",
    )


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("BASE_MODELS", "", "at least 1 item"),
        ("BASE_MODELS", "a=/x,a=/y", "two base models have the same id"),
        ("BASE_MODELS", "A B=/x", "ids consist of"),
        ("BASE_MODELS", "a=", "must be a model directory"),
        ("MAX_WORKERS", "0", "must be at least 1"),
        ("MAX_WORKERS", "many", "a whole number is expected"),
        ("MAX_VIRTUAL_TOKENS", "100000", "must be at most 1024"),
        ("MAX_RUNTIME_SECONDS", "-1", "greater than 0"),
        ("CHECKPOINT_SECONDS", "0", "greater than 0"),
        ("DATA_DIR", "/dev/null/x", "can write or create"),
        ("STORE_URL", "ftp://host/prompts", "with one of file"),
        ("DATABASE_URL", "mysql://host/jobs", "must look like sqlite:///FILE"),
        ("DTYPE", "float64", "'auto', 'float32', 'bfloat16' or 'float16'"),
        ("DATASET_ROOTS", "relative", "absolute path of an existing directory"),
        ("DATASET_ROOTS", "/no/such/directory", "absolute path of an existing directory"),
        ("MAX_LINE_BYTES", str(1 << 40), "can't be longer than a dataset"),
        ("PORT", "70000", "must be at most 65535"),
        ("MAX_WORKER", "1", "is not a setting"),
    ],
)
def test_bad_values_name_variable_and_expectation(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, expected: str
) -> None:
    monkeypatch.setenv(f"{PREFIX}{name}", value)
    with pytest.raises(ConfigError) as refused:
        load_settings(TrainerSettings)
    assert f"{PREFIX}{name}" in str(refused.value)
    assert expected in str(refused.value)


def test_all_bad_variables_are_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"{PREFIX}MAX_WORKERS", "0")
    monkeypatch.setenv(f"{PREFIX}DTYPE", "int8")
    with pytest.raises(ConfigError) as refused:
        load_settings(TrainerSettings)
    assert len(str(refused.value).splitlines()) == 2


def test_limits_of_jobs_are_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """The settings' defaults equal those of the parts."""
    monkeypatch.setenv(f"{PREFIX}BASE_MODELS", "m")
    assert load_settings(TrainerSettings).jobs == JobsConfig()
    for name, value in (
        ("MAX_INFRASTRUCTURE_FAILURES", "20"),
        ("MAX_PUBLISH_SECONDS", "3600"),
        ("PROOF_SECONDS", "300"),
    ):
        monkeypatch.setenv(f"{PREFIX}{name}", value)
    settings = load_settings(TrainerSettings)
    assert (settings.jobs.max_infrastructure_failures, settings.jobs.max_publish_seconds, settings.proof_seconds) == (
        20,
        3600,
        300,
    )


def test_help_explains_every_setting() -> None:
    text = describe_settings(TrainerSettings)
    for name, field in TrainerSettings.model_fields.items():
        assert f"{PREFIX}{name.upper()}" in text
        assert field.description, f"{name} has no docstring"


def test_the_models_file_adds_models_and_overrides_those_of_the_setting(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "models.json"
    kept: dict[str, Any] = {"id": "large", "source": "org/large", "workers": {"least": 2}}
    listed = [kept, {"id": "small", "source": "/mnt/small"}]
    path.write_text(json.dumps({"models": listed}))
    monkeypatch.setenv(f"{PREFIX}MODELS_FILE", str(path))
    with pytest.raises(ConfigError, match=r"MODELS_FILE: .*least of all models is 2 .*MAX_WORKERS is 1"):
        _ = load_settings(TrainerSettings).sources
    monkeypatch.setenv(f"{PREFIX}MAX_WORKERS", "2")
    both = (BaseModelSource("small", "/mnt/small"), BaseModelSource("large", "org/large"))
    assert load_settings(TrainerSettings).sources == both
    monkeypatch.delenv(f"{PREFIX}BASE_MODELS")
    assert load_settings(TrainerSettings).sources == both[::-1]
    found, now = load_settings(TrainerSettings).models, time.monotonic()
    path.write_text(json.dumps({"models": [{**kept, "workers": {"least": 3}}]}))
    monkeypatch.setattr(time, "monotonic", lambda: now + 5)
    assert found.workers("large").least == 2, "a reload is checked like the start"
    assert "least of all models is 3 together (large 3)" in caplog.text
    path.write_text('{"models": [{"id": "a", "source": "x", "gpus": 1}]}')
    with pytest.raises(ConfigError, match=r"SOFTPROMPT_TRAINER_MODELS_FILE: .*models\.0\.gpus"):
        _ = load_settings(TrainerSettings).sources
    monkeypatch.delenv(f"{PREFIX}MODELS_FILE")
    with pytest.raises(ConfigError, match=r"SOFTPROMPT_TRAINER_BASE_MODELS: .*MODELS_FILE"):
        load_settings(TrainerSettings)
