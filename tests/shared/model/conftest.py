"""A model directory that a test may damage."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

CACHE = ".softprompt-fingerprint.json"


@pytest.fixture
def model_dir(tiny_model_dir: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage, without a fingerprint."""
    return Path(shutil.copytree(tiny_model_dir, tmp_path / "Tiny-Llama", ignore=shutil.ignore_patterns(CACHE)))
