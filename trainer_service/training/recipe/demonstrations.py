"""Training examples with their answers as the start of a prefix of keys and values (CT-KV, arXiv:2507.04221).

An example that could attend to its own answer would learn to copy it. So each row of a training example hides the
positions that come from this example, or from another one with the same input and answer.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import cycle

from trainer_service.training.data.encoding import EncodedExample, RowTokens


@dataclass(frozen=True)
class Demonstrations:
    """`token_ids`, `owners`: by position, the token and the tokens of the example that it comes from, or None."""

    token_ids: tuple[int, ...]
    owners: tuple[RowTokens | None, ...]

    @cached_property
    def hidden(self) -> Mapping[RowTokens, tuple[int, ...]]:
        """The positions that rows of each shown example must not attend to, by the rows' tokens."""
        found = dict[RowTokens, list[int]]()
        for position, owner in enumerate(self.owners):
            if owner is not None:
                found.setdefault(owner, []).append(position)
        return {owner: tuple(positions) for owner, positions in found.items()}


def demonstrations(
    examples: Sequence[EncodedExample], num_positions: int, seed: int, first_token_id: int | None
) -> Demonstrations:
    """Examples in an order drawn by `seed`, again from the first one if all fit; the one that doesn't fit comes first,
    without its beginning.

    A pure function, so a resumed job hides the same positions. The first position is the attention sink, which all rows
    attend to: `first_token_id`, or without one the first token of an input.
    """
    order = list(range(len(examples)))
    random.Random(f"demonstrations {seed}").shuffle(order)
    first = examples[order[0]].input_ids[0] if first_token_id is None else first_token_id
    left, owned = num_positions - 1, list[tuple[int, RowTokens]]()
    for index in cycle(order):
        if left <= 0:
            break
        example = examples[index]
        owner = example.input_ids, example.target_ids
        tokens = (*example.input_ids, *example.target_ids)[-left:]
        owned = [*((token, owner) for token in tokens), *owned]
        left -= len(tokens)
    return Demonstrations((first, *(token for token, _ in owned)), (None, *(owner for _, owner in owned)))
