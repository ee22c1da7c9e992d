"""Base models that can't take a soft prompt: the jobs that name them are refused with the reason, the others are not."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from transformers import MambaConfig, PreTrainedConfig, T5Config

from shared.errors import InvalidInput, PreconditionFailed, Unavailable
from trainer_service.base_models import BaseModels
from trainer_service.config import BaseModelSource


def source(directory: Path, config: PreTrainedConfig) -> BaseModelSource:
    config.save_pretrained(directory)
    return BaseModelSource(config.model_type, str(directory))


def test_a_job_on_an_encoder_decoder_or_a_state_space_model_is_refused_with_the_reason(tiny_model_dir: Path, tmp_path: Path) -> None:
    sources = [source(tmp_path / "t5", T5Config()), source(tmp_path / "mamba", MambaConfig()), BaseModelSource("good", str(tiny_model_dir))]
    models = BaseModels(sources)
    models.load()
    assert models.get("").info.id == "good"
    for name, reason in (("t5", "encoder-decoder"), ("mamba", "recurrent state")):
        with pytest.raises(PreconditionFailed, match=reason) as refused:
            models.get(name, "spec.base_model")
        assert refused.value.metadata["field"] == "spec.base_model"
    with pytest.raises(InvalidInput):
        models.get("nobody")


def test_a_trainer_of_refused_models_alone_does_not_start(tmp_path: Path) -> None:
    with pytest.raises(PreconditionFailed, match="encoder-decoder"):
        BaseModels([source(tmp_path / "t5", T5Config())]).load()


def test_missing_and_broken_models_do_not_keep_the_others_from_being_used_and_are_used_once_they_appear(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    truncated, garbled, missing = tmp_path / "truncated", tmp_path / "garbled", tmp_path / "missing"
    shutil.copytree(tiny_model_dir, truncated)
    weights = next(truncated.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-100])
    shutil.copytree(tiny_model_dir, garbled)
    (garbled / "config.json").write_text("{")
    broken = {"missing": missing, "truncated": truncated, "garbled": garbled}
    models = BaseModels([BaseModelSource(id, str(path)) for id, path in broken.items()] + [BaseModelSource("good", str(tiny_model_dir))])
    models.load()
    assert models.get("good").info.id == "good"
    assert set(models.problems) == set(broken)
    for id, reason in (("missing", "missing"), ("truncated", weights.name), ("garbled", "config.json"), ("", "missing")):
        with pytest.raises(PreconditionFailed, match=reason):
            models.get(id)
    for path in broken.values():
        shutil.copytree(tiny_model_dir, path, dirs_exist_ok=True)
    models.load()
    assert not models.problems
    assert [info.id for info in models.infos] == ["missing", "truncated", "garbled", "good"]


def test_without_any_usable_model_loading_can_be_tried_again(tiny_model_dir: Path, tmp_path: Path) -> None:
    models = BaseModels([BaseModelSource("later", str(tmp_path / "later"))])
    with pytest.raises(Unavailable, match="later"):
        models.load()
    shutil.copytree(tiny_model_dir, tmp_path / "later")
    models.load()
    assert models.get("").info.id == "later"
