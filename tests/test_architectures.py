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
