"""The inputs of golden records: sentences of this program, never a customer's. Training, proof and serving take them
from here.

A prompt that is ignored, shifted, or applied to another model shows it on every input, so it needs none of the inputs
that it was tuned for. A record holds token ids only; a replica makes the same ids with the version's own template,
which proves the template too.
"""

from __future__ import annotations

from shared.text.template import InputEncoder

_LONG = (
    "In the morning the train was late, so the people on the platform talked about the weather, the news of the day and the price of "
    "bread. A man with a large bag asked the woman beside him what time it was, and she said that it was ten past eight. When the train "
    "came, it had only three cars, and most of the people had to stand until the second station."
)
GOLDEN_INPUTS = ("The weather was good, so we", "1 2 3 4", "What is this about?", "name: Aria | price: 40", _LONG)
"""Append only: a version is checked against these texts for as long as it is served. Frequent words, because of rare
ones a model makes noise that rounding changes; one long text, because masks and positions go wrong far out first.
"""


def golden_input_ids(encoder: InputEncoder) -> tuple[tuple[int, ...], ...]:
    """What stands after the virtual tokens, for each of `GOLDEN_INPUTS`."""
    return tuple(tuple(encoder.encode_input(text)) for text in GOLDEN_INPUTS)
