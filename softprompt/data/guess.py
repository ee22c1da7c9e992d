"""Columns that hold no text to learn from: identifiers, dates, addresses. They are never guessed to be an input or a
target.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

_RECORD_WORD = re.compile(
    "ids?|uuid|uid|guid|nr|no|num|number|index|idx|row|key|hash|ref|reference|code|sku|isbn|date|datum|day|month|year|"
    "time|timestamp|datetime|created|updated|modified|closed|opened|at|email|mail|phone|tel|telephone|fax|mobile|url|uri|"
    "link|website|ip|zip|postcode|lat|lon|latitude|longitude"
)
_PERSON_WORD = re.compile("name|author|user|username|assignee|agent|customer|owner|sender|recipient|from|to")
"""Such a column can also hold what the person wrote."""
_ANSWER_WORD = re.compile(
    "repl(?:y|ies)|answers?|responses?|outputs?|completions?|summary|summaries|translations?|corrections?|corrected|"
    "rewritten|rewrites?|descriptions?|texts?|messages?|comments?|explanations?|solutions?"
)
"""Such a column holds a text and no label, however short the first one is."""
_NAME_WORDS = 3
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[^\W\d_A-Z]+|[^\W\d_]+")
_RECORD_VALUES = (
    re.compile(r"\d{5,}"),
    re.compile(r"(?=(?:\D*\d){3})\S*[^\s\d]\S*"),  # T-1001, 2026-03-05T10:00, 0f8e...
    re.compile(r"\d{1,4}[-./]\d{1,2}[-./]\d{1,4}(?:[ T,].*)?"),
    re.compile(r"\d{1,2}:\d{2}(?::\d{2})?(?: ?[AaPp]\.?[Mm]\.?)?"),
    re.compile(r"\S+@\S+\.\S+"),
    re.compile(r"(?:https?://|www\.)\S+"),
    re.compile(r"\+?[\d\s()/-]{6,}"),
)
_VALUE_CHARS = 100
"""Longer values are texts."""


def is_record_data(name: str, value: Any) -> bool:
    """Whether a column describes the record and not its content, by its name and the value of one row."""
    text = str(value).strip()
    words = {word.lower() for word in _WORD.findall(name)}
    if len(text) > _VALUE_CHARS:
        return False
    if any(pattern.fullmatch(text) for pattern in _RECORD_VALUES):
        return True
    if len(text.split()) > _NAME_WORDS:
        return False
    return any(map(_RECORD_WORD.fullmatch, words)) or (
        any(map(_PERSON_WORD.fullmatch, words)) and any(map(str.isalpha, text))
    )


def names_an_answer(name: str) -> bool:
    """Whether a column's name ends in a word for a written text: `Reply` and `finalAnswer`, but not `reply_type`."""
    words = _WORD.findall(name)
    return bool(words) and _ANSWER_WORD.fullmatch(words[-1].lower()) is not None


def likely_columns(names: Sequence[str], row: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """The columns that can be an input or a target, and those of them that hold a text; in the order of the file."""
    possible = [name for name in names if not is_record_data(name, row[name])]
    return possible, [name for name in possible if any(map(str.isalpha, str(row[name])))]
