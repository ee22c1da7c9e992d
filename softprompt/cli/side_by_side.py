"""Answers of several prompts, versions or the bare model to one input, beside each other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from softprompt.cli.output import print_json, show, stdout, table

if TYPE_CHECKING:
    from softprompt.client.sync_client import Client

_COLUMN_CHARS = 32
"""A terminal with fewer characters for each answer shows them one after the other."""


def compare_answers(
    client: Client, question: str, references: Mapping[str, str], options: Mapping[str, Any], *, as_json: bool
) -> None:
    """Ask each reference, given by its title, and show all answers."""
    answers = {title: client.generate(question, prompt=reference, **options) for title, reference in references.items()}
    if as_json:
        for title, answer in answers.items():
            print_json({"prompt": title, "generation": answer})
        return
    titles = [
        f"{title} ({answer.start.version.rpartition('/')[2] or 'bare model'})" for title, answer in answers.items()
    ]
    texts = [answer.text.strip() or answer.why_empty for answer in answers.values()]
    console = stdout()
    if console.is_terminal and console.width >= _COLUMN_CHARS * len(texts):
        beside = table(*titles)
        beside.padding = (0, 2)
        beside.add_row(*texts)
        show(beside)
        return
    for heading, text in zip(titles, texts, strict=True):
        show(f"--- {heading}\n{text}")
