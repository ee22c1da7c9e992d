"""A directory of a base model is complete only with all its files as its manifest lists them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from shared.errors import PreconditionFailed
from shared.model import fingerprint
from softprompt.model_folder import is_complete
from softprompt.models import pull
from tests.softprompt.model_files import WEIGHTS, make_model


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return tmp_path / "models"


def test_what_is_cut_short_is_not_complete(models: Path) -> None:
    make_model(models / "small")
    fingerprint.ship(models / "small")
    assert is_complete(models / "small")
    (models / "small" / "model.safetensors").write_bytes(WEIGHTS[:-1])
    assert not is_complete(models / "small")
    (models / "small" / fingerprint.FILE).unlink()
    assert not is_complete(models / "nothing")


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def to_shards(directory: Path) -> None:
    (directory / "model.safetensors").rename(directory / "model-00001-of-00002.safetensors")
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": shards}))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda model: cut_short(model / "model.safetensors"), "cut short"),
        (lambda model: (model / "model.safetensors").unlink(), "no [*].safetensors"),
        (lambda model: (model / "model.safetensors").write_bytes(b""), "empty"),
        (to_shards, "model-00002-of-00002.safetensors"),
        (lambda model: (model / "tokenizer.json").unlink(), "no tokenizer"),
        (lambda model: cut_short(model / "tokenizer.json"), "tokenizer.json is not valid JSON"),
        (lambda model: cut_short(model / "config.json"), "config.json is not valid JSON"),
    ],
)
@pytest.mark.parametrize("mark", ["none", "stale", "cache"])
def test_a_part_of_a_model_is_refused_and_not_marked(
    models: Path, spoil: Callable[[Path], object], message: str, mark: str
) -> None:
    make_model(models / "small")  # leaves the fingerprint's cache, which is no mark
    if mark == "stale":
        fingerprint.ship(models / "small")
    elif mark == "none":
        (models / "small" / fingerprint.FILE).unlink()
    spoil(models / "small")
    with pytest.raises(PreconditionFailed, match=f"no complete model: .*{message}"):
        pull("Org/Small", models)
    assert not is_complete(models / "small")


def test_a_model_that_was_changed_is_marked_again(models: Path) -> None:
    make_model(models / "small")
    before = fingerprint.ship(models / "small").fingerprint
    (models / "small" / "tokenizer.json").write_text('{"new": 1}')
    assert not is_complete(models / "small")
    pull("Org/Small", models)
    assert is_complete(models / "small")
    assert fingerprint.of(models / "small").fingerprint != before


def test_a_pinned_model_is_hashed_though_its_mark_fits_by_sizes(models: Path) -> None:
    made = make_model(models / "small")
    fingerprint.ship(models / "small")
    (models / "small" / "model.safetensors").write_bytes(WEIGHTS[:-1] + b"?")
    with pytest.raises(PreconditionFailed, match="not those"):
        pull(f"Org/Small@{made}", models)
