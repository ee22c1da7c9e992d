"""The table in docs/models.md is what happens: each architecture is saved, loaded as the services load it, trained on and served.

`python -m tests.architectures` prints the rows anew.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.architectures import DOC, TYPES, WRONG, examine, row

TABLE = {line.split(" | ")[0].removeprefix("| "): line for line in DOC.read_text().splitlines() if line.startswith("| ")}


def test_the_table_has_every_causal_architecture() -> None:
    assert sorted(set(TABLE) - {"model type"}) == TYPES


@pytest.mark.parametrize(
    "model_type",
    [pytest.param(name, marks=pytest.mark.xfail(raises=AssertionError, strict=True)) if name in WRONG else name for name in TYPES],
)
def test_what_training_and_serving_make_of_it(model_type: str, tmp_path: Path) -> None:
    assert row(model_type, examine(model_type, tmp_path)) == TABLE[model_type]
