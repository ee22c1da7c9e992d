"""Sentences of pydantic about a value that can't be read, in our words."""

from __future__ import annotations

import re

_REWORDED = (
    (r"(Input should be|.* is not) a valid integer.*", "a whole number is expected"),
    (r"(Input should be|.* is not) a valid (number|float).*", "a number is expected"),
    (r"(Input should be|.* is not) a valid boolean.*", "true or false is expected"),
    (r"Input should be greater than or equal to (.*)", r"must be at least \1"),
    (r"Input should be less than or equal to (.*)", r"must be at most \1"),
    (r"Input should be a valid string or list", "must be a string or a list"),
    (r"Input should be a valid string", "must be a string"),
    (r"Input should be a valid (list|array|tuple)", "must be a list"),
    (r"Input should be (a valid dictionary|an object).*", "must be an object"),
    (r"(List|Tuple|String) should have at least 1 (item|character)\b.*", "must not be empty"),
    (r"(List|Tuple) should have at most 0 items.*", "must be empty"),
    (r"\w+ should have at (least|most) (\d+ \w+)( after validation)?, not (\d+)", r"must have at \1 \2, has \4"),
    (r"\w+ should have at (least|most) (\d+ \w+)", r"must have at \1 \2"),
    (r"Input should be None", "must be null"),
    (r"Input should be True", "must be true"),
    (r"Input should be False", "must be false"),
    (r"Input should be (.*)", r"must be \1"),
)


def plain_message(message: str) -> str:
    """The sentence in our words; another sentence unchanged, without its full stop."""
    text = message.rstrip(".")
    if text.startswith("Value error, "):  # the sentence of a validator of ours
        return text.removeprefix("Value error, ")
    for pattern, replacement in _REWORDED:
        text = re.sub(f"^{pattern}", replacement, text)
    return text
