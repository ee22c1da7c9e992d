"""The inputs of golden records: fixed sentences, never a customer's data. Training and serving share them.

Any input reveals a prompt that is ignored, shifted, or applied to another model, so the inputs need not resemble the
training data. A record holds only token ids; a replica makes the same ids with the version's template, which also
checks the template.
"""

from __future__ import annotations

from shared.text.template import InputEncoder

_LONG = (
    "In the morning the train was late, so the people on the platform talked about the weather, the news of the day "
    "and the price of bread. A man with a large bag asked the woman beside him what time it was, and she said that it "
    "was ten past eight. When the train came, it had only three cars, and most of the people had to stand until the "
    "second station."
)
GOLDEN_INPUTS = ("The weather was good, so we", "1 2 3 4", "What is this about?", "name: Aria | price: 40", _LONG)
"""Append only: a version is checked against these texts for as long as it is served. The words are frequent, because a
model's answers to rare words are noise that rounding changes. One text is long, because errors of masks and positions
first appear at large positions.
"""


def golden_input_ids(encoder: InputEncoder) -> tuple[tuple[int, ...], ...]:
    """The token ids of each of `GOLDEN_INPUTS`, which follow the virtual tokens."""
    return tuple(tuple(encoder.encode_input(text)) for text in GOLDEN_INPUTS)
