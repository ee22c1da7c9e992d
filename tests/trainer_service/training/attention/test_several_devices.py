"""A model whose layers are on two devices gives the numbers of one device, without two GPUs: see `on_two_devices`."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

MODELS = ("llama", "gemma3_text", "deepseek_v2")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, float | str]]:
    """What a child process compares, because the devices change torch permanently."""
    folder = str(tmp_path_factory.mktemp("models"))
    command = [sys.executable, "-m", "tests.trainer_service.training.attention.on_two_devices", folder]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    compared: dict[str, dict[str, float | str]] = json.loads(done.stdout)
    return compared


@pytest.mark.parametrize("model", MODELS)
def test_passes_jobs_and_answers_are_those_of_one_device(found: dict[str, dict[str, float | str]], model: str) -> None:
    assert len(found[model]) == 11
    wrong = {
        what: difference
        for what, difference in found[model].items()
        if (difference if isinstance(difference, str) else not difference < 1e-5)  # also not NaN
    }
    assert wrong == {}


@pytest.mark.parametrize("fault", ["tiles", "mlp"])
def test_a_tensor_on_the_wrong_device_is_found(found: dict[str, dict[str, float | str]], fault: str) -> None:
    wrong = found[fault]
    assert "Expected all tensors to be on the same device" in str(wrong["packed PROMPT"])
    assert wrong["forward"], "the worker trains by a slower path"
