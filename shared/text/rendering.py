"""Renders messages by a model's own chat template, the same on every day."""

from __future__ import annotations

import json
import re
import string
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

from shared.values.template import Template

_PIECE_OF_A_CODE = re.compile(r"""%-?['"]""")


def render_chat(
    tokenizer: Any, template: Template, turns: Sequence[Mapping[str, str]], *, add_generation_prompt: bool
) -> str:
    """The turns rendered by the model's chat template, with the template's date and arguments."""
    source = tokenizer.get_chat_template()
    if template.date and "strftime_now" in source:
        source = _clock(datetime.fromisoformat(template.date), f"{source}{template.arguments}") + source
    rendered: str = tokenizer.apply_chat_template(
        [dict(turn) for turn in turns],
        chat_template=source,
        tokenize=False,
        add_generation_prompt=add_generation_prompt,
        **template.arguments,
    )
    return rendered


@lru_cache(maxsize=64)  # each rendering needs it
def _clock(day: datetime, formats: str) -> str:
    """A Jinja macro that takes the place of `strftime_now`, transformers' clock, and always gives this day.

    It replaces the codes that occur in `formats`, because each one costs time; all, if a code may be made of pieces.
    """
    codes = [flag + code for code in f"{string.ascii_letters}%" for flag in ("%-", "%")]
    if not _PIECE_OF_A_CODE.search(formats):
        codes = [code for code in codes if code in formats]
    table = json.dumps({code: day.strftime(code) for code in codes})
    return (
        "{% macro strftime_now(format) %}{% set found = namespace(text=format) %}{% for code, text in "
        + table
        + ".items() %}{% set found.text = found.text.replace(code, text) %}{% endfor %}{{ found.text }}{% endmacro %}"
        "{{ '' }}"  # the line break after a block is removed, and this one may be the template's own
    )
