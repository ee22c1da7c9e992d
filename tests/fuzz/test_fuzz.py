"""Some damaged inputs for every reader; `make fuzz` gives many, also to running services."""

from __future__ import annotations

import pytest

from tests.fuzz.__main__ import Tally, feed
from tests.fuzz.readers import Reader, readers

INPUTS = 100


@pytest.fixture(scope="module")
def all_readers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Reader]:
    return readers(tmp_path_factory.mktemp("fuzz"))


@pytest.mark.parametrize(
    "target", ["blob", "store", "dataset", "csv-upload", "file", "import", "safetensors", "callers", "template", "gguf"]
)
def test_damaged_inputs_are_refused_as_they_should(all_readers: dict[str, Reader], target: str) -> None:
    tally = Tally(target)
    for number in range(INPUTS):
        feed(target, all_readers[target], number, tally)
    assert tally.findings == []
    assert 0 < tally.refused < INPUTS


def test_a_reader_that_breaks_is_found() -> None:
    def careless(random: object) -> None:
        raise KeyError("input")

    tally = Tally("careless")
    feed("careless", careless, 1, tally)
    assert [(number, "KeyError" in problem) for number, problem in tally.findings] == [(1, True)]
