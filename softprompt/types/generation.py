"""Inputs and answers of the inference service: plain frozen dataclasses without protobuf."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from shared.errors import SoftPromptError, Unavailable
from shared.values.generation import Generation, TokenIds
from shared.values.message import Message

Input = str | Sequence[Message | Mapping[str, str]] | TokenIds
"""A text or conversation for the prompt's template, or token ids. A turn may be {"role": ..., "content": ...}."""


@dataclass(frozen=True)
class GenerationOutcome:
    """The outcome of one of several inputs: the answer, or the error in its place."""

    index: int
    """Number of the input, from 0."""
    input: Input
    generation: Generation | None = None
    error: SoftPromptError | None = None

    @property
    def text(self) -> str:
        """The text of the answer. Raises the error if there is none."""
        if self.generation is None:
            raise self.error or Unavailable("there is no answer")
        return self.generation.text
