"""A model whose layers are on two devices gives the numbers of one device, without two GPUs: see `on_two_devices`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

MODELS = ("llama", "gemma3_text", "deepseek_v2")


def on_two_devices(folder: Path, fault: str = "") -> dict[str, dict[str, float | str]]:
    """Runs the comparison in a child process, because the devices change torch permanently."""
    command = [sys.executable, "-m", "tests.trainer_service.training.attention.on_two_devices", str(folder), fault]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[str, float | str]] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, float | str]]:
    return on_two_devices(tmp_path_factory.mktemp("models"))


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
def test_a_tensor_on_the_wrong_device_is_found(fault: str, tmp_path: Path) -> None:
    wrong = on_two_devices(tmp_path, fault)["llama"]
    assert "Expected all tensors to be on the same device" in str(wrong["packed PROMPT"])
    assert wrong["forward"], "the worker trains by a slower path"
