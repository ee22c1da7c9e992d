"""The table of docs/models.md is true: every architecture, through the doors that production uses."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import architectures


@pytest.mark.parametrize("model_type", architectures.model_types())
def test_what_the_table_says_of_an_architecture_is_so(model_type: str, tmp_path: Path) -> None:
    assert architectures.judge(model_type, tmp_path) == architectures.documented()[model_type]


def test_the_table_names_every_architecture_once() -> None:
    assert list(architectures.documented()) == architectures.model_types()


@pytest.mark.parametrize("model_type", ["whisper", "llama", "opt", "bloom"])
def test_answers_do_not_depend_on_how_an_input_is_cut_into_steps(model_type: str, tmp_path: Path) -> None:
    """Whisper's decoder knows no `logits_to_keep` and gives the logits of all positions."""
    verdicts = architectures.served_in_chunks(model_type, tmp_path, (8, 13, 64))
    assert verdicts == [architectures.documented()[model_type].serving] * 3
