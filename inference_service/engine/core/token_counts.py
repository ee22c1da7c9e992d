"""How often each token occurs in a sequence, counted as the sequence grows. Pure Python; imports no torch."""

from __future__ import annotations

from array import array
from collections.abc import Sequence


class TokenCounts:
    """The distinct tokens of a sequence, in the order of their first occurrence.

    A step looks only at the tokens that were added since the last one, however long the sequence is.
    """

    def __init__(self) -> None:
        self.ids = array("q")
        """The distinct tokens."""
        self.generated = array("f")
        """How often each of them was generated; 0 if it occurs in the input alone."""
        self._places: dict[int, int] = {}
        self._num_counted = 0

    def update(self, tokens: Sequence[int], num_input: int) -> None:
        """Count the tokens after those of the last call; the first `num_input` tokens are the input."""
        for index in range(self._num_counted, len(tokens)):
            token = tokens[index]
            place = self._places.setdefault(token, len(self.ids))
            if place == len(self.ids):
                self.ids.append(token)
                self.generated.append(0.0)
            self.generated[place] += index >= num_input
        self._num_counted = len(tokens)
