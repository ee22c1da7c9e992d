"""The content of one step: chunks of sequences as plain data, and how sequences are split. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from inference_service.engine.core.running_request import RunningRequest


@dataclass(frozen=True)
class Chunk:
    """Positions `[start, start + count)` of one sequence to compute.

    `branches` are candidates that each continue from the last of these positions. The last token of a branch is scored
    but never fed, so a branch takes one position less than it has tokens. A candidate that is too long for one step is
    split over several chunks with one branch each; every chunk continues from the part that is already scored.
    """

    sequence: RunningRequest
    row: int
    start: int
    count: int
    samples: bool
    """Whether the last position's logits choose the next token."""
    branches: tuple[tuple[int, ...], ...] = ()
    num_input_logits: int = 0
    """Positions, the last before one that samples, whose logits give the log-probability of the next input token."""

    @property
    def num_positions(self) -> int:
        """Positions fed to the model, branches included."""
        return self.count + sum(len(branch) - 1 for branch in self.branches)

    @property
    def end(self) -> int:
        """One past the last slot that the chunk writes."""
        return self.start + self.num_positions

    @property
    def num_logits(self) -> int:
        """Positions whose logits are needed: `num_main_logits`, and all of the branches."""
        return self.num_positions - self.count + self.num_main_logits

    @property
    def num_main_logits(self) -> int:
        """Main positions, the last ones, whose logits are needed: to score input tokens, to sample or to score."""
        return self.num_input_logits + (1 if self.samples or self.branches else 0)

    @property
    def num_virtual(self) -> int:
        """Positions at the chunk's beginning that are virtual tokens."""
        return min(self.count, max(0, self.sequence.num_virtual - self.start))

    @property
    def branch_lengths(self) -> tuple[int, ...]:
        """Fed tokens of each non-empty branch; empty with fewer than two: one just continues the main positions."""
        lengths = tuple(len(branch) - 1 for branch in self.branches if len(branch) > 1)
        return lengths if len(lengths) > 1 else ()


@dataclass(frozen=True)
class StepPlan:
    """Operations on the cache, then one forward pass over all chunks.

    `ops` are applied in order. Chunks of one position come first, by row, then longer ones by length; chunks with
    several branches come last. The type of an op is known only to the pool that plans it and the runner that applies
    it; each has the `row` that it changes.
    """

    chunks: tuple[Chunk, ...]
    ops: tuple[Any, ...]

    @property
    def num_positions(self) -> int:
        """Positions of the forward pass."""
        return sum(chunk.num_positions for chunk in self.chunks)


def is_decode(sequence: RunningRequest) -> bool:
    """Whether the sequence's next chunk is a single position that samples a token."""
    return sequence.num_uncomputed == 1 and not sequence.is_score and not sequence.is_load


def slots_needed(sequence: RunningRequest, max_length: int, max_positions: int) -> int:
    """Slots to reserve when the sequence starts.

    These are the slots of its input; for a score also those of the candidates that fit into one step of
    `max_positions`.
    """
    if not sequence.is_score:
        return sequence.length
    lengths = [len(candidate) - 1 for candidate in sequence.candidates]
    candidates = min(sum(lengths), max(max(lengths), max_positions))
    return min(max_length, sequence.num_virtual + sequence.num_input + candidates)


def next_chunk(sequence: RunningRequest, budget: int, scorable: int, slots: int) -> Chunk | None:
    """The next chunk of a running sequence within `budget` positions and `slots` slots, or None if nothing fits.

    At most `scorable` positions may have logits for a score. When the input of a score fits, whole candidates follow as
    branches, or a part of the next one.
    """
    assert sequence.row is not None
    start, left = sequence.num_computed, sequence.length - sequence.num_computed
    if not sequence.is_score:
        return _next_main_chunk(sequence, budget, scorable)
    # The last main token is computed again with every group of candidates: its logits score their first tokens.
    if left == 0:
        start, left = sequence.length - 1, 1
    if left > budget or (left == budget and left > 1):
        return Chunk(sequence, sequence.row, start, min(budget, left - 1), samples=False)
    room = min(budget - left, scorable - 1, slots - start - left)
    if room < 0:
        return None
    rest = sequence.candidates[sequence.num_scored][sequence.num_partial :]
    branches = [rest[: room + 1]]
    if not sequence.num_partial:
        for candidate in sequence.candidates[sequence.num_scored + 1 :]:
            room -= len(branches[-1]) - 1
            if len(candidate) - 1 > room or len(branches[0]) < len(rest):
                break
            branches.append(candidate)
    return Chunk(sequence, sequence.row, start, left, samples=False, branches=tuple(branches))


def _next_main_chunk(sequence: RunningRequest, budget: int, scorable: int) -> Chunk | None:
    """The next chunk of a generation or a load."""
    assert sequence.row is not None
    start, left = sequence.num_computed, sequence.length - sequence.num_computed
    count, num_logits = min(left, budget), 0
    if sequence.num_input_unscored:
        # The logits at the position of a token give the log-probability of the next one.
        before = max(0, sequence.num_virtual + sequence.num_input_scored - start)
        count = min(count, before + scorable)
        if count <= 0:
            return None
        num_logits = min(sequence.num_input_unscored, max(0, count - before))
    samples = count == left and not sequence.is_load
    return Chunk(sequence, sequence.row, start, count, samples, num_input_logits=num_logits)


def complete_chunk(chunk: Chunk) -> None:
    """Update the sequence after the chunk's keys and values were written to its row.

    The scored part of a candidate is appended to the tokens, so that it counts as input until the candidate is scored
    completely.
    """
    sequence = chunk.sequence
    sequence.num_computed = chunk.start + chunk.count
    if not chunk.branches:
        return
    candidate = sequence.candidates[sequence.num_scored]
    if len(chunk.branches) == 1 and sequence.num_partial + len(chunk.branches[0]) < len(candidate):
        sequence.tokens.extend(chunk.branches[0])
        sequence.num_computed = chunk.end
        return
    sequence.drop_partial()
    sequence.num_scored += len(chunk.branches)
    sequence.num_computed = min(sequence.num_computed, sequence.length)
