"""A location stays a value until it is rendered, and a received text parses to the same location."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import FieldViolation, InvalidInput
from shared.location import Location
from shared.violations import moved

NAMES = st.text("abz_0", min_size=1, max_size=5)
PATHS = st.lists(NAMES | st.integers(0, 99), max_size=4).map(tuple)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("spec.labels[2]", Location(("spec", "labels", 2))),
        ("line 7", Location(row=7)),
        ("dataset line 7 messages[1].role", Location(("messages", 1, "role"), "dataset", 7)),
        ("validation dataset row 3", Location((), "validation dataset", 3, "row")),
        ("spec.annotations['a b']", Location(("spec.annotations['a b']",))),
        ("", Location()),
        ("line 0", Location(("line 0",))),
        ("a..b", Location(("a..b",))),
        ("line " + "9" * 5000, Location(("line " + "9" * 5000,))),
        ("a[" + "9" * 5000 + "]", Location(("a[" + "9" * 5000 + "]",))),
    ],
)
def test_a_text_is_read_as_the_place_that_it_shows(text: str, place: Location) -> None:
    assert Location.parse(text) == place
    assert str(place) == text


@given(st.text())
def test_no_text_is_changed_by_being_read(text: str) -> None:
    assert str(Location.parse(text)) == text


@given(
    PATHS,
    st.sampled_from(["", "dataset", "validation dataset"]),
    st.integers(1, 10**6),
    st.sampled_from(["line", "row"]),
)
def test_a_place_in_a_row_survives(path: tuple[str | int, ...], source: str, row: int, unit: str) -> None:
    named = ("x", *path)  # a path in a row begins with a name
    assert Location.parse(str(Location(named, source, row, unit))) == Location(named, source, row, unit)


def test_an_item_of_a_list_is_shown_by_its_index() -> None:
    assert str(Location(("output",), "dataset", 7, unit="")) == "dataset[6].output"


def test_an_error_names_its_place_as_each_layer_knows_it() -> None:
    with (
        pytest.raises(InvalidInput) as caught,
        moved(lambda place: place.below(Location(("spec",)))),
        moved(lambda place: place / 3),
    ):
        raise InvalidInput.of("labels", "is empty")
    assert caught.value.violations == (FieldViolation("spec.labels[3]", "is empty"),)
    assert str(caught.value) == "spec.labels[3]: is empty"
