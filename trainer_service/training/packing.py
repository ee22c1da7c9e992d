"""Rows of many jobs as one sequence without padding.

The sequence is: for each segment its *shared* positions (virtual tokens, then the tokens that all its rows begin with, such as a
template's preamble), then for each segment the *own* tokens of its rows, one row after the other. A row attends to its segment's
shared positions and causally to itself; shared positions attend causally to each other. Positions count as if every row stood
alone behind its shared part, so linear layers see `shared + own` positions where padded rows would take `rows * longest`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

BUCKET_RATIO, BUCKET_SLACK = 1.25, 8


@dataclass(frozen=True)
class Row:
    """One training or scoring row: the loss, or the score, is on `target_ids`. `weight` scales the row's loss."""

    input_ids: tuple[int, ...]
    target_ids: tuple[int, ...]
    weight: float = 1.0

    @cached_property
    def tokens(self) -> tuple[int, ...]:
        """What the model reads: the last target is predicted, never read."""
        return (*self.input_ids, *self.target_ids[:-1])


@dataclass(frozen=True)
class Segment:
    """Rows behind one soft prompt, `[num_virtual_tokens, hidden_size]` in the model's dtype; None for the bare model."""

    prompt: torch.Tensor | None
    rows: Sequence[Row]

    @property
    def num_virtual_tokens(self) -> int:
        return 0 if self.prompt is None else self.prompt.shape[0]


@dataclass(frozen=True)
class Span:
    """Where one segment lies in the packed sequence, as half-open ranges."""

    shared_start: int
    shared_end: int
    own_start: int
    own_end: int
    longest_own: int

    @property
    def shared_length(self) -> int:
        return self.shared_end - self.shared_start


@dataclass(frozen=True)
class Bucket:
    """Rows of similar length, padded to the longest for the attention within rows only.

    A padding slot repeats the row's last position, so whatever it holds (also NaN) is that row's own.
    """

    index: torch.Tensor
    """[rows, longest] packed positions"""
    valid: torch.Tensor
    """[tokens] flat indices into `index` that are not padding"""
    padding: torch.Tensor
    """[rows, longest] True where a slot is padding"""
    full: bool
    """No slot is padding."""


@dataclass(frozen=True)
class Layout:
    spans: tuple[Span, ...]
    buckets: tuple[Bucket, ...]
    positions: torch.Tensor
    """[tokens] position of each packed token in its own row"""

    @property
    def num_tokens(self) -> int:
        return int(self.positions.shape[0])


@dataclass(frozen=True)
class Packed:
    """`pieces` alternate prompts and token ids in packed order; targets are ordered by segment, row, target."""

    layout: Layout
    pieces: tuple[torch.Tensor, ...]
    target_positions: torch.Tensor
    target_ids: torch.Tensor


def common_length(rows: Sequence[Row]) -> int:
    """How many leading tokens all rows share; every row keeps at least the last token of its input for itself."""
    if len(rows) < 2:
        return 0
    first, last = min(row.input_ids for row in rows), max(row.input_ids for row in rows)
    length = 0
    for left, right in zip(first, last, strict=False):
        if left != right:
            break
        length += 1
    return min(length, min(len(row.input_ids) for row in rows) - 1)


def num_packed_tokens(num_virtual_tokens: int, rows: Sequence[Row]) -> int:
    """Positions that this segment takes in a step."""
    shared = common_length(rows)
    return num_virtual_tokens + shared + sum(len(row.tokens) - shared for row in rows)


def pack(segments: Sequence[Segment], device: torch.device) -> Packed:
    commons = [common_length(segment.rows) for segment in segments]
    pieces, positions, starts = list[torch.Tensor](), list[int](), list[int]()
    for segment, common in zip(segments, commons, strict=True):
        starts.append(len(positions))
        positions.extend(range(segment.num_virtual_tokens + common))
        if segment.prompt is not None:
            pieces.append(segment.prompt)
        if common:
            pieces.append(torch.tensor(segment.rows[0].input_ids[:common], device=device))
    ends = [*starts[1:], len(positions)]

    own_ids, spans, rows = list[int](), list[Span](), list[tuple[int, int]]()
    target_positions, target_ids = list[int](), list[int]()
    for segment, common, start, end in zip(segments, commons, starts, ends, strict=True):
        own_start = len(positions)
        for row in segment.rows:
            own = row.tokens[common:]
            first = len(positions) + len(row.input_ids) - common - 1
            target_positions.extend(range(first, first + len(row.target_ids)))
            target_ids.extend(row.target_ids)
            rows.append((len(positions), len(own)))
            own_ids.extend(own)
            positions.extend(range(end - start, end - start + len(own)))
        longest = max((len(row.tokens) - common for row in segment.rows), default=0)
        spans.append(Span(start, end, own_start, len(positions), longest))
    pieces.append(torch.tensor(own_ids, device=device))
    layout = Layout(tuple(spans), _buckets(rows, device), torch.tensor(positions, device=device))
    return Packed(layout, tuple(pieces), torch.tensor(target_positions, device=device), torch.tensor(target_ids, device=device))


def _buckets(rows: Sequence[tuple[int, int]], device: torch.device) -> tuple[Bucket, ...]:
    """Group (start, length) by length, so that little padding is computed."""
    groups = list[list[tuple[int, int]]]()
    for row in sorted(rows, key=lambda row: (row[1], row[0])):
        if groups and row[1] <= groups[-1][0][1] * BUCKET_RATIO + BUCKET_SLACK:
            groups[-1].append(row)
        else:
            groups.append([row])
    return tuple(_bucket(sorted(group), device) for group in groups)


def _bucket(rows: Sequence[tuple[int, int]], device: torch.device) -> Bucket:
    longest = max(length for _, length in rows)
    slots = torch.arange(longest)[None]  # [1, longest]
    starts = torch.tensor([start for start, _ in rows])[:, None]
    lengths = torch.tensor([length for _, length in rows])[:, None]
    padding = slots >= lengths  # [rows, longest]
    index = starts + torch.minimum(slots, lengths - 1)
    valid = (~padding).flatten().nonzero().squeeze(1)
    return Bucket(index.to(device), valid.to(device), padding.to(device), not bool(padding.any()))
