"""Packing rows of several runs into tiles."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from shared.prompt.prefix import PrefixInput
from trainer_service.training.attention.packing import (
    PADDING_RATIO,
    PADDING_SLACK,
    Row,
    Segment,
    num_packed_tokens,
    pack,
)

CPU = torch.device("cpu")


@given(st.lists(st.tuples(st.integers(1, 60), st.integers(1, 5)), min_size=1, max_size=30), st.integers(0, 9))
def test_packing_places_every_token_once(shapes: list[tuple[int, int]], preamble: int) -> None:
    rows = [
        Row((*range(5, 5 + preamble), *((100 + i + j) % 250 for j in range(n))), (7,) * t)
        for i, (n, t) in enumerate(shapes)
    ]
    packed = pack([Segment(PrefixInput(torch.zeros(3, 2)), rows), Segment(None, rows[:1])], CPU)
    expected = num_packed_tokens(3, rows) + num_packed_tokens(0, rows[:1])
    assert packed.layout.num_tokens == expected
    placed = torch.cat([tile.index.flatten() for tile in packed.layout.tiles_on(CPU)])
    assert sorted(placed[placed < expected].tolist()) == list(range(expected))
    for tile in packed.layout.tiles_on(CPU):
        filled = (tile.index < expected).sum(-1)
        similar = (
            int(filled.min()) * PADDING_RATIO + PADDING_SLACK
        )  # rows of a segment are; then whole segments, once more
        assert int(filled.max()) == tile.longest <= similar * PADDING_RATIO + PADDING_SLACK
    assert [len(row.input_ids) - 1 + 3 for row in rows] == _first_target_positions(
        packed.layout.positions, packed.target_positions, rows
    )


def _first_target_positions(positions: torch.Tensor, targets: torch.Tensor, rows: list[Row]) -> list[int]:
    found, first = [], 0
    for row in rows:
        found.append(int(positions[targets[first]]))
        first += len(row.target_ids)
    return found
