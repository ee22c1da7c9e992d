"""Rows of many jobs as one sequence without padding.

The sequence is: for each segment its *shared* positions (virtual tokens, then the tokens that all its rows begin with,
such as a template's preamble), then for each segment the *own* tokens of its rows, one row after the other. A row
attends to its segment's shared positions and causally to itself; shared positions attend causally to each other.
Position numbers are as if each row followed its shared part alone. Linear layers see `shared + own` positions, where
padded rows would take `rows * longest`.

Keys and values that a prefix brings along (`PrefixInput.keys`) take positions in attention only: the model passes over
the other positions, and each layer's attention inserts them (`Layout.insert`).

Attention in torch needs dense blocks: a `Tile` holds rows of similar length with equally long shared parts, padded to
the longest row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain

import torch

from shared.kernels.ops import Spans
from shared.prompt.prefix import PrefixInput
from trainer_service.training.teacher_targets import TeacherTargets

PADDING_RATIO, PADDING_SLACK = 1.25, 8  # a tile's longest row may exceed its shortest by this
ITEM_TOKENS = 64
"""Row tokens per item of the compiled kernels. 48 to 128 are equally fast; fewer are slower."""


@dataclass(frozen=True)
class Row:
    """One training or scoring row. The loss or score is on `target_ids`; `weight` scales each target token's loss."""

    input_ids: tuple[int, ...]
    target_ids: tuple[int, ...]
    weight: float = 1.0
    teacher: TeacherTargets | None = field(default=None, compare=False)
    """Set: the loss is the divergence from these distributions, and `target_ids` are only read."""

    @cached_property
    def tokens(self) -> tuple[int, ...]:
        """The tokens that the model reads. The last target is predicted, never read."""
        return (*self.input_ids, *self.target_ids[:-1])


@dataclass(frozen=True)
class Segment:
    """Rows after one prefix; None: the bare model."""

    prefix: PrefixInput | None
    rows: Sequence[Row]

    @property
    def num_virtual_tokens(self) -> int:
        """Positions of the segment's prefix; 0 without one."""
        return 0 if self.prefix is None else self.prefix.num_virtual_tokens

    @property
    def num_hidden(self) -> int:
        """Positions of the prefix that these rows don't attend to, but count."""
        return 0 if self.prefix is None else self.prefix.num_hidden

    @property
    def num_embedded(self) -> int:
        """Positions of the prefix whose keys and values the model computes."""
        return 0 if self.prefix is None else self.prefix.num_embedded


@dataclass(frozen=True)
class Tile:
    """Rows that attention computes together: `rows` of each of some segments whose shared parts are equally long.

    Shared positions themselves are tiles, too: one row of each segment, with nothing shared before it.
    """

    index: torch.Tensor
    """[segments, rows, longest] packed positions; padding says `num_tokens`, one past the last."""
    shared: torch.Tensor
    """[segments, shared length] packed positions that every row of the segment attends to"""
    masks: dict[tuple[int | None, int], torch.Tensor] = field(default_factory=dict, compare=False)
    """Attention masks, made once per pass, by sliding window and number of query heads per key head."""

    @property
    def longest(self) -> int:
        """Slots per row, including padding."""
        return self.index.shape[2]

    @property
    def shared_length(self) -> int:
        """Shared positions of each segment."""
        return self.shared.shape[1]


@dataclass(frozen=True)
class Given:
    """Keys and values of one segment's prefix, which the model doesn't compute, from packed position `start` on.

    `keys`, `values`: of each layer `[num_virtual_tokens, kv_heads, width]` as its attention reads them.
    """

    start: int
    keys: Sequence[torch.Tensor]
    values: Sequence[torch.Tensor]

    @property
    def length(self) -> int:
        """The number of positions."""
        return int(self.keys[0].shape[0])


@dataclass(frozen=True)
class Layout:
    """Where each segment and row lies in the packed sequence."""

    shared: tuple[range, ...]
    """Packed positions of each segment's shared part; their position numbers start at 0."""
    rows: tuple[tuple[range, ...], ...]
    """Packed positions of the own tokens of each segment's rows."""
    positions: torch.Tensor
    """[tokens that the model computes] position of each in its own row"""
    given: tuple[Given, ...] = ()
    """In packed order. The model computes all other packed positions."""
    _tiles: dict[torch.device, tuple[Tile, ...]] = field(default_factory=dict, init=False, compare=False, repr=False)

    @property
    def num_tokens(self) -> int:
        """Positions of the packed sequence."""
        return int(self.positions.shape[0]) + sum(given.length for given in self.given)

    def insert(self, computed: torch.Tensor, given: Sequence[torch.Tensor]) -> torch.Tensor:
        """The tensor `[heads, packed positions, width]` of what the model computed `[heads, tokens, width]`.

        `given`: what goes to each of `self.given`, `[num_virtual_tokens, heads, width]`.
        """
        if not self.given:
            return computed
        pieces = torch.split(computed, self._parts[::2], dim=1)  # a slice would have a gradient of full size
        between = zip(pieces, (tensor.transpose(0, 1) for tensor in given), strict=False)
        return torch.cat([*chain.from_iterable(between), pieces[-1]], dim=1)

    def drop(self, attended: torch.Tensor) -> torch.Tensor:
        """The rows of `attended` `[packed positions, ...]` at the positions that the model computes."""
        return torch.cat(torch.split(attended, self._parts)[::2]) if self.given else attended

    @property
    def _parts(self) -> list[int]:
        """Lengths in packed order: of what the model computes, of what is given, and so on in turn."""
        parts, end = list[int](), 0
        for given in self.given:
            parts += [given.start - end, given.length]
            end = given.start + given.length
        return [*parts, self.num_tokens - end]

    def tiles_on(self, device: torch.device) -> tuple[Tile, ...]:
        """The tiles on a device; the layers of one model may be on several."""
        found = self._tiles.get(device)
        if found is None:
            themselves = [_Cell(range(0), [span]) for span in self.shared if span]
            found = _tiles(themselves + _cells(self.shared, self.rows), self.num_tokens, device)
            self._tiles[device] = found
        return found

    @cached_property
    def spans(self) -> Spans:
        """The compiled kernels' counterpart of tiles, without padding."""
        return _spans(self.shared, self.rows)


@dataclass(frozen=True)
class Packed:
    """`pieces` alternate prompts and token ids in packed order; targets are ordered by segment, row, target.

    `target_positions` count the positions that the model computes.
    """

    layout: Layout
    pieces: tuple[torch.Tensor, ...]
    target_positions: torch.Tensor
    target_ids: torch.Tensor


def common_length(rows: Sequence[Row]) -> int:
    """The number of leading tokens that all rows share, excluding at least the last input token of every row."""
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
    """The number of positions that a segment of these rows takes in a step."""
    shared = common_length(rows)
    return num_virtual_tokens + shared + sum(len(row.tokens) - shared for row in rows)


def pack(
    segments: Sequence[Segment],
    device: torch.device,
    attended: Callable[[PrefixInput], PrefixInput] = lambda prefix: prefix,
) -> Packed:
    """Lay out the segments as one packed sequence on `device`.

    `attended`: makes what the layers' attention reads of keys and values as a model's cache has them.
    """
    commons = [common_length(segment.rows) for segment in segments]
    pieces, positions, shared, given = list[torch.Tensor](), list[int](), list[range](), list[Given]()
    end = 0
    for segment, common in zip(segments, commons, strict=True):
        prefix = segment.prefix
        if prefix is not None and prefix.keys:
            read = attended(prefix)
            given.append(Given(end, read.keys, read.values))
        if prefix is not None and prefix.embeddings is not None:
            pieces.append(prefix.embeddings)
        length = segment.num_virtual_tokens + common
        number = length + segment.num_hidden
        positions.extend(range(number - segment.num_embedded - common, number))
        shared.append(range(end, end + length))
        end += length
        if common:
            pieces.append(torch.tensor(segment.rows[0].input_ids[:common], device=device))

    own_ids, own = list[int](), list[list[range]]()
    target_positions, target_ids = list[int](), list[int]()
    for segment, common, before in zip(segments, commons, shared, strict=True):
        own.append([])
        for row in segment.rows:
            start, tokens = len(positions), row.tokens[common:]
            first = start + len(row.input_ids) - common - 1
            target_positions.extend(range(first, first + len(row.target_ids)))
            target_ids.extend(row.target_ids)
            own_ids.extend(tokens)
            number = len(before) + segment.num_hidden
            positions.extend(range(number, number + len(tokens)))
            own[-1].append(range(end, end + len(tokens)))
            end += len(tokens)
    pieces.append(torch.tensor(own_ids, device=device))
    layout = Layout(tuple(shared), tuple(map(tuple, own)), torch.tensor(positions, device=device), tuple(given))
    return Packed(
        layout, tuple(pieces), torch.tensor(target_positions, device=device), torch.tensor(target_ids, device=device)
    )


@dataclass(frozen=True)
class _Cell:
    """Rows of one segment, of similar length."""

    shared: range
    rows: list[range]

    @property
    def longest(self) -> int:
        return max(map(len, self.rows))


def _spans(shared: Sequence[range], own: Sequence[Sequence[range]]) -> Spans:
    """Spans whose items each have at least ITEM_TOKENS row tokens, except for the last item of a segment.

    Items don't depend on the number of threads.
    """
    items, rows, num_partial = list[list[int]](), list[range](), 0
    themselves = [(range(0), [span]) for span in shared if span]
    for before, spans in (*themselves, *zip(shared, own, strict=True)):
        filled = ITEM_TOKENS
        for span in spans:
            if filled >= ITEM_TOKENS:
                items.append([before.start if before else -1, len(before), len(rows), 0, num_partial])
                num_partial, filled = num_partial + len(before), 0
            items[-1][3] += 1
            filled += len(span)
            rows.append(span)
    return Spans(
        torch.tensor(items), torch.tensor([[row.start, len(row)] for row in rows]), sum(map(len, rows)), num_partial
    )


def _cells(shared: Sequence[range], own: Sequence[Sequence[range]]) -> list[_Cell]:
    cells = list[_Cell]()
    for before, rows in zip(shared, own, strict=True):
        if not before:  # nothing is shared: each row can lie beside any other
            cells.extend(_Cell(before, [row]) for row in rows)
            continue
        groups = list[list[range]]()
        for row in sorted(rows, key=lambda row: (len(row), row.start)):
            if groups and _similar(len(groups[-1][0]), len(row)):
                groups[-1].append(row)
            else:
                groups.append([row])
        cells.extend(_Cell(before, sorted(group, key=lambda row: row.start)) for group in groups)
    return cells


def _tiles(cells: Sequence[_Cell], num_tokens: int, device: torch.device) -> tuple[Tile, ...]:
    groups = list[list[_Cell]]()
    for cell in sorted(cells, key=lambda cell: (len(cell.shared), len(cell.rows), cell.longest)):
        first = groups[-1][0] if groups else cell
        alike = (len(first.shared), len(first.rows)) == (len(cell.shared), len(cell.rows))
        if groups and alike and _similar(first.longest, cell.longest):
            groups[-1].append(cell)
        else:
            groups.append([cell])
    return tuple(_tile(sorted(group, key=lambda cell: cell.rows[0].start), num_tokens, device) for group in groups)


def _tile(cells: Sequence[_Cell], num_tokens: int, device: torch.device) -> Tile:
    longest = max(cell.longest for cell in cells)
    index = [[[*row, *[num_tokens] * (longest - len(row))] for row in cell.rows] for cell in cells]
    return Tile(
        torch.tensor(index, device=device),
        torch.tensor([list(cell.shared) for cell in cells], dtype=torch.long, device=device),
    )


def _similar(shorter: int, longer: int) -> bool:
    return longer <= shorter * PADDING_RATIO + PADDING_SLACK
