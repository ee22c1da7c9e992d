"""The dataset of a distillation: a text, and questions without answers."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

from shared.errors import InvalidInput
from shared.values.example import Example
from shared.values.spec import DOCUMENT, QUESTION
from shared.violations import items_of
from softprompt.data.values import check_unicode
from softprompt.input_files import MAX_PIPE_BYTES, input_file, shown_name

Text = str | os.PathLike[str]
"""A text itself, or the path of a file in UTF-8."""


def distillation_examples(document: Text, questions: Text | Iterable[str] = ()) -> tuple[Example, ...]:
    """The examples of a `TuningSpec` with a `distillation`. `questions`: texts, or the path of a file with one in each
    line, as a text or a JSON object with an `input`. Raises NotFound, InvalidInput naming `document` or `questions[i]`.
    """
    text: object = _read(document, "document") if isinstance(document, os.PathLike) else document
    if not isinstance(text, str) or not text.strip():
        raise InvalidInput.of("document", "is blank: give the text that the prompt is to replace")
    check_unicode(text, "document")
    if isinstance(questions, str) or not isinstance(questions, os.PathLike | Iterable):
        raise InvalidInput.of("questions", "must be a list of texts, or the path of a file as pathlib.Path")
    given: Iterable[object] = _lines(_read(questions, "questions")) if isinstance(questions, os.PathLike) else questions
    examples = [Example(text, DOCUMENT)]
    for index, question in enumerate(items_of(given, "questions")):
        if not isinstance(question, str) or not question.strip():
            raise InvalidInput.of(f"questions[{index}]", "must be a text that is not blank")
        check_unicode(question, f"questions[{index}]")
        examples.append(Example(question, QUESTION))
    return tuple(examples)


def _read(path: os.PathLike[str], field: str) -> str:
    found = input_file(Path(path), field)
    if isinstance(found, Path) and found.stat().st_size > MAX_PIPE_BYTES:
        limit = f"at most {MAX_PIPE_BYTES >> 20} MiB are allowed"
        raise InvalidInput.of(field, f"{shown_name(found)} is too large: {limit}; split it")
    data = found if isinstance(found, bytes) else found.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidInput.of(field, f"is not UTF-8 (byte {error.start + 1})") from None
    if "\0" in text:
        reason = "is not a text: it has the character U+0000, like binary files and UTF-16"
        raise InvalidInput.of(field, f"{reason}; save it as UTF-8")
    return text


def _lines(text: str) -> list[str]:
    found = list[str]()
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        value: object = line.strip()
        if line.lstrip().startswith("{"):
            try:
                value = json.loads(line)
            except ValueError:  # a question that begins with a brace
                value = line.strip()
        if isinstance(value, dict):
            value = value.get("input")
        if not isinstance(value, str) or not value.strip():
            raise InvalidInput.of(f"questions line {number}", "must be a question, or an object with a text as input")
        found.append(value)
    if not found:
        raise InvalidInput.of("questions", "has no question")
    return found
