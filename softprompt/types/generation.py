"""Inputs and answers of the inference service: plain frozen dataclasses without protobuf."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from shared.errors import SoftPromptError, Unavailable
from shared.values.enums import LoadedState as LoadedState
from shared.values.generation import CandidateScore as CandidateScore
from shared.values.generation import Completion as Completion
from shared.values.generation import FinishReason as FinishReason
from shared.values.generation import Generation as Generation
from shared.values.generation import GenerationDelta as GenerationDelta
from shared.values.generation import GenerationEnd as GenerationEnd
from shared.values.generation import GenerationLimits as GenerationLimits
from shared.values.generation import GenerationStart as GenerationStart
from shared.values.generation import InputToken as InputToken
from shared.values.generation import LoadedPrompt as LoadedPrompt
from shared.values.generation import LoadedPrompts as LoadedPrompts
from shared.values.generation import ModelInfo as ModelInfo
from shared.values.generation import Scores as Scores
from shared.values.generation import TokenAlternative as TokenAlternative
from shared.values.generation import TokenCount as TokenCount
from shared.values.generation import TokenIds as TokenIds
from shared.values.generation import TokenLogprob as TokenLogprob
from softprompt.types.common import Message

Input = str | Sequence[Message | Mapping[str, str]] | TokenIds
"""A text or a conversation, rendered by the prompt's template, or token ids. A turn may be {"role": ..., "content":
...}.
"""


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
