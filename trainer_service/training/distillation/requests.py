"""Requests that lead the base model to ask a question about a text, modelled on Cartridges' seed prompts.

They differ in kind, so that the questions are not all about the text's beginning or all of one form.
"""

from __future__ import annotations

import random

_ALONE = " Write only the message, as the user would type it, in one sentence."
REQUESTS = (
    "Ask one question about a particular fact, name, number or rule in the text above." + _ALONE,
    "You are a customer who has never seen the text above. Write a request for which its rules matter." + _ALONE,
    "Describe a small case to which the text above applies, and ask what follows from it." + _ALONE,
    "Ask for a short summary of one part of the text above." + _ALONE,
    "Ask for something that the text above forbids, restricts or does not cover." + _ALONE,
    "Ask for one statement of the text above to be explained or said again in other words." + _ALONE,
    "Write an everyday message to an assistant that follows the text above: a greeting, a complaint or a task."
    + _ALONE,
    "Ask how two things in the text above are related, compared or ordered." + _ALONE,
)
_EXCERPT_WORDS = 60


def request_for(document: str, number: int, seed: int) -> tuple[str, str]:
    """The request for question `number`, with an excerpt of the text to look at, and the same without it."""
    plain = REQUESTS[number % len(REQUESTS)]
    words = document.split()
    if len(words) <= _EXCERPT_WORDS:
        return plain, plain
    first = random.Random(f"{seed} excerpt {number}").randrange(len(words) - _EXCERPT_WORDS + 1)
    return f'{plain} Think of this passage: "{" ".join(words[first : first + _EXCERPT_WORDS])}"', plain


def question_of(answer: str) -> str:
    """The question in the model's text: its first line that is not blank, without quotation marks around it."""
    line = next((line.strip() for line in answer.splitlines() if line.strip()), "")
    return line.strip('"“” ').strip()
