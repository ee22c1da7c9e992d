"""The models file: what it says, errors that name the key, and reloading."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from shared.config import ConfigError
from shared.model.models_file import ModelsFile, Workers


def write(path: Path, *models: dict[str, Any]) -> Path:
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps({"models": models}))
    temporary.replace(path)
    return path


def test_it_names_the_resources_of_each_model(tmp_path: Path) -> None:
    large = {
        "id": "large",
        "source": "org/large",
        "dtype": "bfloat16",
        "weights": "q8_0",
        "workers": {
            "least": 1,
            "most": 4,
            "num_gpus": 0.5,
            "num_cpus": 3,
            "memory_bytes": float(1 << 30),  # as Helm writes it
            "accelerator_type": "H100",
            "ray_resources": {"nvme": 2},
            "ray_labels": {"ray.io/market-type": "!in(spot,x)"},
            "launch_seconds": 1800,
        },
        "replicas": {"least": 0, "most": 3, "num_gpus": 1, "node_labels": {"pool": "a"}, "tolerations": [{"key": "k"}]},
    }
    found = ModelsFile(write(tmp_path / "models.json", large, {"id": "small", "source": "/models/small"}))
    assert list(found.entries) == ["large", "small"]
    assert found.entries["large"].model_dump(exclude_unset=True, mode="json") == large
    assert (found.workers("small"), found.workers("unknown")) == (Workers(), Workers())


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"gpus": 1}, "models.0.gpus: Extra inputs"),
        ({"id": "A B"}, "models.0.id"),
        ({"source": ""}, "models.0.source"),
        ({"dtype": "int4"}, "models.0.dtype"),
        ({"weights": "int8"}, "models.0.weights"),
        ({"workers": {"num_gpu": 1}}, "models.0.workers.num_gpu: Extra inputs"),
        ({"workers": {"num_gpus": 1.5}}, "models.0.workers.num_gpus: 1.5 must be at most 1, or whole"),
        ({"workers": {"num_gpus": -1}}, "models.0.workers.num_gpus"),
        ({"workers": {"num_cpus": 2.5}}, "models.0.workers.num_cpus: 2.5"),
        ({"workers": {"num_gpus": 0, "accelerator_type": "A100"}}, "models.0.workers: accelerator_type"),
        ({"workers": {"least": 3, "most": 2}}, "models.0.workers: least: must not be above most, which is 2"),
        ({"workers": {"most": 0}}, "models.0.workers.most"),
        ({"workers": {"memory_bytes": "16Gi"}}, "models.0.workers.memory_bytes"),
        ({"workers": {"launch_seconds": 0}}, "models.0.workers.launch_seconds"),
        ({"workers": {"ray_resources": {"GPU": 1}}}, "models.0.workers.ray_resources: GPU is not a custom resource"),
        ({"workers": {"ray_resources": {"nvme": 0}}}, "models.0.workers.ray_resources.nvme"),
        ({"workers": {"ray_labels": {"zone": "in(a"}}}, "models.0.workers.ray_labels.zone"),
        ({"replicas": {"least": 2, "most": 1}}, "models.0.replicas: least"),
        ({"replicas": {"num_gpus": 0.5}}, "models.0.replicas.num_gpus: 0.5 must be 0 or 1"),
        ({"replicas": {"node_labels": {"-": "x"}}}, "models.0.replicas.node_labels"),
        ({"replicas": {"tolerations": [{"key": "a", "operator": "Exists", "value": "b"}]}}, "tolerations.0: value"),
        ({"replicas": {"tolerations": [{"operator": "Equal"}]}}, "tolerations.0: key"),
        ({"replicas": {"tolerations": [{"key": "a b"}]}}, "tolerations.0.key"),
        ({"replicas": {"least": True}}, "models.0.replicas.least: a whole number"),
        ({"replicas": {"most": "2"}}, "models.0.replicas.most: a whole number"),
        ({"workers": {"num_gpus": True}}, "models.0.workers.num_gpus: a number"),
        ({"source": "/a,/b"}, "models.0.source: must have no comma"),
        ({"source": "/a\0"}, "models.0.source: must have no comma, no control character"),
    ],
)
def test_a_value_without_meaning_is_named(tmp_path: Path, changes: dict[str, Any], expected: str) -> None:
    path = write(tmp_path / "models.json", {"id": "a", "source": "/models/a", **changes})
    with pytest.raises(ConfigError) as refused:
        ModelsFile(path)
    assert expected in str(refused.value)
    assert str(path) in str(refused.value)
    assert "at least one model" not in str(refused.value)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "file: Invalid JSON"),
        ("[]", "file: must be an object"),
        ('{"models": []}', "models: must have at least one model"),
        ('{"models": [], "extra": 1}', "extra: Extra inputs"),
        ('{"models": [{"id": "a", "source": "x", "id": "b"}]}', "the key 'id' is there twice"),
        ('{"models": [{"id": "a", "source": "x"}, {"id": "a", "source": "y"}]}', "models: two models have the id 'a'"),
        ('{"models": [{"id": "a", "source": "x", "workers": {"num_gpus": NaN}}]}', "num_gpus"),
    ],
)
def test_a_file_that_is_wrong_stops_the_start(tmp_path: Path, content: str, expected: str) -> None:
    path = tmp_path / "models.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=r"models\.json") as refused:
        ModelsFile(path)
    assert expected in str(refused.value)


def test_a_missing_file_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        ModelsFile(tmp_path / "models.json")


def test_it_is_read_again_and_a_broken_one_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    path = write(tmp_path / "models.json", {"id": "a", "source": "x", "workers": {"most": 1}})
    found = ModelsFile(path)
    write(path, {"id": "a", "source": "x", "workers": {"most": 7}})
    assert found.workers("a").most == 1, "it looks once a second"
    now += 1.0
    assert found.workers("a").most == 7
    for breaks in (lambda: write(path, {"id": "a", "source": "x", "workers": {"most": "?"}}), lambda: os.remove(path)):
        breaks()
        now += 1.0
        assert found.workers("a").most == 7
