"""Conversations in the formats of OpenAI and ShareGPT, as turns of role and content."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Mapping, Sized
from contextlib import suppress
from typing import Any

from shared.text.blank import is_blank
from softprompt.data.problems import Unusable
from softprompt.data.values import fields_of, is_missing, shown, text_of
from softprompt.types.type_names import type_name

_ROLES = {
    "system": "system",
    "developer": "system",  # OpenAI's name since its reasoning models
    "user": "user",
    "human": "user",
    "prompter": "user",  # Open Assistant's
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
}
_PYTHON_LIST = re.compile(r"\s*\[\s*\{\s*['\"]")
_WRITTEN_TURNS = re.compile(r"""\s*\[\s*\{\s*(['"])(?:role|from|content|value)\1\s*:""")
_PART_TYPES = ("text", "input_text", "output_text")


class Turns:
    """Reads one conversation and notes what it drops."""

    def __init__(self, drop_extra: bool) -> None:
        self._drop_extra = drop_extra
        self.dropped: set[str] = set()
        """Dropped keys of turns."""
        self.was_cut = False
        """Turns after the last one with weight 1 were dropped."""

    def read(self, value: Any, part: str) -> list[dict[str, str]] | None:
        """The turns; None if every message of the assistant has weight 0. Raises Unusable."""
        turns = turns_of(value, part)
        kept = _through_last_weighted(turns, part)
        if kept is None:
            return None
        self.was_cut = len(kept) < len(turns)
        made = [self._turn(turn, f"{part}[{index}]") for index, turn in enumerate(kept)]
        if len(made) < 2 or made[-1]["role"] != "assistant":
            reason = "must end with the assistant's message that is to be learned, after at least one other"
            raise Unusable(reason, part)
        return made

    def read_input(self, value: Any, part: str, with_answer: bool = True) -> list[dict[str, str]]:
        """All turns or, if the last one is the assistant's and `with_answer` is set, those before the one to learn.

        Raises Unusable.
        """
        turns = turns_of(value, part)
        if with_answer and turns and known_role(turns[-1]) == "assistant":
            turns = (_through_last_weighted(turns, part) or turns)[:-1]
        return [self._turn(turn, f"{part}[{index}]") for index, turn in enumerate(turns)]

    def _turn(self, turn: Mapping[str, Any], part: str) -> dict[str, str]:
        role_name, content_name = _role_name(turn), "value" if is_missing(turn.get("content")) else "content"
        role_here = known_role(turn)
        if role_here is None:
            role = turn.get(role_name)
            reason = f"must be one of system, user, assistant, not {shown(role)}"
            raise Unusable(reason, f"{part}.role", f"role {shown(role)}")
        known = {role_name, content_name, "weight", *_repeated_names(turn)}
        extra = {
            key
            for key, value in turn.items()
            if key not in known and not (is_missing(value) or (isinstance(value, Sized) and not len(value)))
        }
        if called := extra & {"tool_calls", "function_call"}:
            raise Unusable(f"has {', '.join(sorted(called))}: tool calls can't be learned", part, "tool calls")
        if extra and not self._drop_extra:
            keys = ", ".join(map(repr, sorted(extra)))
            raise Unusable(f"has {keys} beside role and content", part, f"turn keys {keys}")
        self.dropped |= extra
        content = _content(turn.get(content_name), f"{part}.content")
        if is_blank(content):
            raise Unusable("is empty", f"{part}.content", "content is empty")
        return {"role": role_here, "content": content}


def turns_of(value: Any, part: str) -> list[Mapping[str, Any]]:
    """The turns of a conversation, in a table as JSON. Raises Unusable."""
    value = list_of(value)
    if isinstance(value, str):  # a cell of a CSV or XLSX file
        advice = ""
        if _PYTHON_LIST.match(value):
            advice = "; this looks like a Python value: write it with json.dumps, or the table as Parquet"
        raise Unusable(f"must be a list of turns, in a table as JSON{advice}", part)
    if not isinstance(value, list):
        raise Unusable(f"must be a list of turns, not {type_name(value)}", part)
    return [_fields(turn, f"{part}[{index}]") for index, turn in enumerate(value)]


def list_of(value: Any) -> Any:
    """The list in a cell: in a table as JSON or as Python writes it, a tuple, or an array of pandas. Any other value
    unchanged.
    """
    if isinstance(value, str):
        with suppress(ValueError, RecursionError):
            found = json.loads(value)
            return value if isinstance(found, str) else found
        if _PYTHON_LIST.match(value):  # `to_csv` of pandas
            with suppress(ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
                return ast.literal_eval(value.strip())
        return value
    if hasattr(value, "tolist"):  # pandas reads lists of Parquet as arrays
        value = value.tolist()
    return list(value) if isinstance(value, tuple) else value


def is_written_turns(value: Any) -> bool:
    """Whether a text is a list of turns, as a table has it."""
    return isinstance(value, str) and _WRITTEN_TURNS.match(value) is not None


def _role_name(turn: Mapping[str, Any]) -> str:
    """OpenAI's name or ShareGPT's. Readers of Parquet fill the fields that a turn lacks with nulls."""
    return "from" if is_missing(turn.get("role")) else "role"


def _repeated_names(turn: Mapping[str, Any]) -> Iterator[str]:
    """ShareGPT's names in a turn that says the same under OpenAI's names."""
    names = [turn.get(name) for name in ("role", "from")]
    roles = [_ROLES.get(name.strip().lower()) for name in names if isinstance(name, str)]
    if len(roles) == 2 and roles[0] is not None and roles[0] == roles[1]:
        yield "from"
    content, value = turn.get("content"), turn.get("value")
    if isinstance(content, str) and isinstance(value, str) and content == value:
        yield "value"


def _fields(turn: Any, part: str) -> Mapping[str, Any]:
    if (found := fields_of(turn, part)) is not None:
        return found
    reason = f"must be an object of role and content, not {type_name(turn)}"
    raise Unusable(reason, part, f"turn type {type(turn).__name__}")


def _through_last_weighted(turns: list[Mapping[str, Any]], part: str) -> list[Mapping[str, Any]] | None:
    """The turns up to the assistant's last message whose `weight` (OpenAI's, 0 or 1) is not 0; None without one."""
    if all(is_missing(turn.get("weight")) for turn in turns):
        return turns
    for index, turn in enumerate(turns):
        weight = turn.get("weight")
        if not is_missing(weight) and (isinstance(weight, Sized) or weight not in (0, 1)):
            raise Unusable(f"must be 0 or 1, not {shown(weight)}", f"{part}[{index}].weight", "weight")
    for index in range(len(turns) - 1, -1, -1):
        weight = turns[index].get("weight")
        if known_role(turns[index]) == "assistant" and (is_missing(weight) or weight == 1):
            return turns[: index + 1]
    return None


def known_role(turn: Mapping[str, Any]) -> str | None:
    """The role by its name here; None for an unknown one."""
    role = turn.get(_role_name(turn))
    return _ROLES.get(role.strip().lower()) if isinstance(role, str) else None


def _content(value: Any, part: str) -> str:
    """The text of a content, which may be a list of text parts; these are joined by line breaks. Raises Unusable."""
    if hasattr(value, "tolist") and not isinstance(value, str):
        value = value.tolist()
    if not isinstance(value, list | tuple):
        return text_of(value, part)
    texts = []
    for item in value:
        if isinstance(item, str):
            texts.append(text_of(item, part))
        elif isinstance(item, Mapping) and item.get("type") in _PART_TYPES:
            texts.append(text_of(item.get("text"), part))
        else:
            kind = shown(item.get("type")) if isinstance(item, Mapping) else type_name(item)
            raise Unusable(f"has a part that is not text: {kind}", part, f"content part {kind}")
    return "\n".join(texts)
