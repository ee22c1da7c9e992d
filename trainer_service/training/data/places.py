"""How errors name the lines of datasets: a line of a dataset, or the example of a request that became this line."""

from __future__ import annotations

from dataclasses import replace

from shared.location import Location, Move

DATASET, VALIDATION = "dataset", "validation dataset"


def in_dataset(which: str) -> Move:
    """`line 4 output` -> `dataset line 4 output`, for DATASET or VALIDATION; also renames DATASET to `which`."""

    def move(place: Location) -> Location:
        if place.row:
            return replace(place, source=which) if place.source in ("", DATASET) else place
        return replace(place, path=(which, *place.path[1:])) if place.path[:1] == (DATASET,) else place

    return move


def in_request(which: str, examples: Location) -> Move:
    """`dataset line 4 output` -> `spec.dataset.inline.examples[3].output`; other places stay."""
    return lambda place: (
        replace(examples, path=(*examples.path, place.row - 1, *place.path))
        if place.row and place.source == which
        else place
    )


def in_message(message: str, *fields: str) -> Move:
    """`labels[2]` -> `spec.labels[2]`, for the message that has these fields."""
    return lambda place: (
        place.below(Location((message,))) if not place.row and place.path and place.path[0] in fields else place
    )


def field_of_spec(place: Location) -> Location:
    """The field of a spec that a place belongs to: `dataset line 7 input` -> `spec.dataset`."""
    which = place.source or (DATASET if place.row else str(place.path[0]))
    if which in (DATASET, VALIDATION):
        return Location(("spec", which.replace(" ", "_")))
    return place if which == "spec" else place.below(Location(("spec",)))
