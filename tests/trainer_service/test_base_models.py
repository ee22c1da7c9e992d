"""Base models that don't support soft prompts: only jobs for them are refused, with the reason."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import MambaConfig, PreTrainedConfig, T5Config

from shared.errors import InvalidInput, PreconditionFailed
from trainer_service.base_models import BaseModels, BaseModelSource


def source(directory: Path, config: PreTrainedConfig) -> BaseModelSource:
    config.save_pretrained(directory)
    return BaseModelSource(config.model_type, str(directory))


def test_a_job_on_an_encoder_decoder_or_a_state_space_model_is_refused_with_the_reason(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    sources = [
        source(tmp_path / "t5", T5Config()),
        source(tmp_path / "mamba", MambaConfig()),
        BaseModelSource("good", str(tiny_model_dir)),
    ]
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
