"""The columns that hold an example's input and target, chosen once for each set of column names."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shared.text.blank import without_invisible
from softprompt.data.messages import known_role
from softprompt.data.problems import Unusable
from softprompt.data.values import is_missing, shown, text_of
from softprompt.types.data import Data
from softprompt.types.type_names import listed

INPUT_NAMES = ("input", "prompt", "question", "query", "instruction", "text", "sentence")
OUTPUT_NAMES = ("output", "completion", "answer", "response", "target")
LABEL_NAMES = ("label", "class", "category")
CHAT_NAMES = ("messages", "conversations", "conversation")
_SHOWN_COLUMNS = 12
_LABEL_CHARS = 20
"""Values up to this length are guessed to be labels, unless the column's name says otherwise. Used for advice only."""
_SENTENCE_WORDS = 3
"""A text of at least this many words is preferred as the input."""


@dataclass(frozen=True)
class Layout:
    """Column names as the source writes them; empty: no such column. `instruction` is Alpaca's and precedes `input`."""

    input: str = ""
    output: str = ""
    label: str = ""
    messages: str = ""
    instruction: str = ""
    system: str = ""
    """Column of a conversation's system message."""
    extra: tuple[str, ...] = ()
    """Unused columns."""

    def sentence(self) -> str:
        """Which column was read as what, for people; empty if all columns have the standard names."""
        if self.instruction:
            return f"input = {self.instruction} and {self.input}, output = {self.output}"
        roles = ("input", "output", "label", "messages", "system")
        used = {role: column for role in roles if (column := getattr(self, role))}
        if all(role == column for role, column in used.items()):
            return ""
        return ", ".join(f"{role} = {column}" for role, column in used.items())


class NotUnderstood(Unusable):
    """The columns to use are unknown."""


class Layouts:
    """Finds the layout of a set of columns. `fix` has command-line options that would resolve an unknown layout."""

    def __init__(self, data: Data) -> None:
        self._data = data
        wanted = {"input": data.input, "output": data.output, "label": data.label, "messages": data.messages}
        self._wanted = {role: name for role, name in wanted.items() if name}
        self._found: dict[tuple[str, ...], Layout | NotUnderstood] = {}
        self.fix: dict[str, str] = {}

    def of(self, row: Mapping[str, Any]) -> Layout:
        """The layout of a row. Raises Unusable. If all columns together have no known layout, those with a value
        decide: readers of Parquet and of conversations fill missing fields with nulls.
        """
        try:
            return self._cached(tuple(row), row)
        except NotUnderstood:
            filled = tuple(name for name, value in row.items() if not is_missing(value))
            if len(filled) == len(row):
                raise
            return self._cached(filled, row)

    def _cached(self, columns: tuple[str, ...], row: Mapping[str, Any]) -> Layout:
        found = self._found.get(columns)
        if found is None:
            try:
                found = self._checked(columns, row)
            except NotUnderstood as error:
                found = error
            self._found[columns] = found
        if isinstance(found, NotUnderstood):
            raise found
        return found

    def _checked(self, columns: Sequence[str], row: Mapping[str, Any]) -> Layout:
        layout = self._layout(columns, row)
        if layout.extra and not self._data.drop_extra:
            self.fix["--drop-extra"] = ""
            verb = "is" if len(layout.extra) == 1 else "are"
            raise NotUnderstood(f"{_has(columns)}; {_listed(layout.extra)} {verb} not used: drop what is not needed")
        return layout

    def _layout(self, columns: Sequence[str], row: Mapping[str, Any]) -> Layout:
        if len(set(columns)) < len(columns):
            twice = next(name for name in columns if list(columns).count(name) > 1)
            raise NotUnderstood(f"has the column {twice!r} twice")
        chosen = {role: self._wanted_column(role, columns) for role in self._wanted}
        if len(set(chosen.values())) < len(chosen) or ("messages" in chosen and len(chosen) > 1):
            named = ", ".join(f"{role} = {shown(name)}" for role, name in chosen.items())
            raise NotUnderstood(f"{named}: name a column for one of them, and messages alone")
        free = [name for name in columns if name not in chosen.values()]
        if "messages" in chosen or (not chosen and (found := only_column(free, CHAT_NAMES))):
            messages = chosen.get("messages") or found
            system = only_column([name for name in free if name != messages], ("system",))
            return Layout(messages=messages, system=system, extra=_rest(columns, messages, system))
        instruction, context = instruction_columns(free)
        output = chosen.get("output") or only_column(free, OUTPUT_NAMES)
        if instruction and output and not chosen.keys() & {"input", "label"}:
            return Layout(context, output, instruction=instruction, extra=_rest(columns, instruction, context, output))
        input = chosen.get("input") or only_column(free, INPUT_NAMES)
        output, label = chosen.get("output", ""), chosen.get("label", "")
        if output and label:
            raise NotUnderstood("an example has an output or a label, not both: name one of them")
        if not output and not label:
            rest = [name for name in free if name != input]
            output, label = only_column(rest, OUTPUT_NAMES), only_column(rest, LABEL_NAMES)
            outputs, labels = (_all_named(rest, names) for names in (OUTPUT_NAMES, LABEL_NAMES))
            if plain_name(output) == OUTPUT_NAMES[0] and LABEL_NAMES[0] not in map(plain_name, labels):
                label = ""
            elif outputs and labels:
                either, other = (" or ".join(map(shown, names)) for names in (outputs, labels))
                targets = f"the output {either} or the label {other}"
                raise NotUnderstood(f"{_has(columns)}: say which is the target, {targets}")
        if not input or not (output or label):
            raise self._not_understood(columns, input, output or label, row)
        return Layout(input, output, label, extra=_rest(columns, input, output, label))

    def _wanted_column(self, role: str, columns: Sequence[str]) -> str:
        name = self._wanted[role]
        if name in columns:
            return name
        if found := _named(columns, name):
            return found
        near = difflib.get_close_matches(name, columns, 1)
        if near:
            self.fix[f"--{role}"] = near[0]
        raise NotUnderstood(f"{_has(columns)} and no {name!r}" + (f"; do you mean {near[0]!r}?" if near else ""))

    def _not_understood(self, columns: Sequence[str], input: str, target: str, row: Mapping[str, Any]) -> NotUnderstood:
        if known_role(row) is not None:
            return NotUnderstood(f'{_has(columns)}: a message is no example; put its conversation into "messages"')
        if len(columns) < 2:
            return NotUnderstood(f"{_has(columns)}: an example needs an input and an output or a label, or messages")
        missing = [] if input else ["input"]
        possible, texts = likely_columns([name for name in columns if name not in (input, target)], row)
        if not input and possible:
            sentences = [name for name in texts if len(str(row[name]).split()) >= _SENTENCE_WORDS]
            self.fix["--input"] = input = (sentences or texts or possible)[0]
            possible.remove(input)
        if not target and possible:
            target = next((name for name in reversed(texts) if name in possible), possible[-1])
            is_label = len(str(row[target])) <= _LABEL_CHARS and not names_an_answer(target)
            self.fix["--label" if is_label else "--output"] = target
            missing.append("label" if is_label else "output")
        elif not target:
            missing.append("output or the label")
        is_structured = any(names_an_answer(name) and not _is_scalar(row[name]) for name in columns)
        if not input or not target or is_structured:  # the answer is in a list or an object
            self.fix.clear()
        elif len(columns) > 2 and not self._data.drop_extra:
            self.fix["--drop-extra"] = ""
        return NotUnderstood(f"{_has(columns)}: say which is the {' and '.join(missing)}")


def _has(columns: Sequence[str]) -> str:
    return f"has {_listed(columns)}" if columns else "has nothing"


def _listed(names: Sequence[str]) -> str:
    return listed(list(map(shown, names)), _SHOWN_COLUMNS)


def _named(columns: Sequence[str], name: str) -> str:
    """The one column of this name by `plain_name`; empty if there is none or more than one."""
    found = [column for column in columns if plain_name(column) == plain_name(name)]
    return found[0] if len(found) == 1 else ""


def only_column(columns: Sequence[str], names: Sequence[str]) -> str:
    """The column called `names[0]`, else the only one with any of the names; empty if there is none, or several."""
    if exact := _named(columns, names[0]):
        return exact
    found = _all_named(columns, names)
    return found[0] if len(found) == 1 else ""


def _all_named(columns: Sequence[str], names: Sequence[str]) -> list[str]:
    return [column for column in columns if plain_name(column) in names]


def instruction_columns(columns: Sequence[str]) -> tuple[str, str]:
    """The instruction and what it is about, as Alpaca and Dolly name them; empty if one of them is missing."""
    instruction, context = _named(columns, "instruction"), _named(columns, "input") or _named(columns, "context")
    return (instruction, context) if instruction and context else ("", "")


def plain_name(name: str) -> str:
    """A column's name without case, surrounding space, and the characters that no program shows."""
    return without_invisible(name).strip().lower()


def _rest(columns: Sequence[str], *used: str) -> tuple[str, ...]:
    return tuple(name for name in columns if name not in used)


_RECORD_WORD = re.compile(
    "ids?|uuid|uid|guid|nr|no|num|number|index|idx|row|key|hash|ref|reference|code|sku|isbn|date|datum|day|month|year|"
    "time|timestamp|datetime|created|updated|modified|closed|opened|at|email|mail|phone|tel|telephone|fax|mobile|url|uri|"
    "link|website|ip|zip|postcode|lat|lon|latitude|longitude"
)
_PERSON_WORD = re.compile("name|author|user|username|assignee|agent|customer|owner|sender|recipient|from|to")
"""Such a column can also hold what the person wrote."""
_ANSWER_WORD = re.compile(
    "repl(?:y|ies)|answers?|responses?|outputs?|completions?|summary|summaries|translations?|corrections?|corrected|"
    "chosen|rewritten|rewrites?|descriptions?|texts?|messages?|comments?|explanations?|solutions?"
)
"""Such a column holds texts and not labels, even if the first one is short."""
_REJECTED_WORD = re.compile("reject|loser|worse|^negatives?$|(dis|un|non?[-_ ]?)preferred", re.IGNORECASE)
"""Such a column holds what a model should not answer, beside one with the better answer."""
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
    """Whether a column describes the record and not its content (an identifier, a date, an address), by its name and
    the value of one row. Such a column is never guessed to be an input or a target.
    """
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
    possible = [
        name
        for name in names
        if _is_scalar(row[name]) and not (is_record_data(name, row[name]) or _REJECTED_WORD.search(name))
    ]
    return possible, [name for name in possible if any(map(str.isalpha, str(row[name])))]


def _is_scalar(value: Any) -> bool:
    try:
        text_of(value, "")
    except Unusable:
        return is_missing(value)
    return True
