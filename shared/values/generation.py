"""What the inference service answers, and what it serves."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from shared.values.base_model import BaseModelInfo
from shared.values.enums import LoadedState
from shared.values.message import Message
from shared.values.sampling import Sampling
from shared.values.template import Template


@dataclass(frozen=True)
class TokenIds:
    """An input as token ids, used without a template and without added special tokens."""

    ids: tuple[int, ...]


@dataclass(frozen=True)
class GenerationInput:
    """The input of a generation: a text or a conversation, rendered by a template, or token ids."""

    content: str | tuple[Message, ...] | TokenIds
    prompt: str = ""
    """ "name", "name@alias" or "name@7"; empty: the bare model."""
    template: Template | None = None
    """For the bare model; a prompt brings its own."""
    routing_key: str = ""
    """The same key gets the same target of a weighted alias."""
    truncate: bool = False
    """Cut the input from the left if it is too long."""
    base_model: str = ""
    """Id or fingerprint of the base model that must answer; empty: any."""


class FinishReason(StrEnum):
    """Why an answer ended."""

    EOS = "EOS"
    LENGTH = "LENGTH"
    STOP_SEQUENCE = "STOP_SEQUENCE"
    DEADLINE = "DEADLINE"
    CANCELLED = "CANCELLED"


@dataclass(frozen=True)
class GenerationStart:
    """The version, the token counts and the seed of an answer. `version` is empty for the bare model."""

    version: str
    digest: str
    input_tokens: int
    virtual_tokens: int
    cached_tokens: int
    seed: int
    request_id: str
    input_logprobs: tuple[InputToken, ...] = ()
    """The tokens of the input, if `num_input_logprobs` was set."""


@dataclass(frozen=True)
class TokenAlternative:
    """Another token at the place of a generated one. `logprob` is a natural logarithm."""

    token_id: int
    logprob: float
    text: str = ""
    utf8: bytes = b""


@dataclass(frozen=True)
class InputToken:
    """A token of the input and its natural log-probability given all before it; None for the first token."""

    token_id: int
    logprob: float | None
    alternatives: tuple[TokenAlternative, ...]
    text: str = ""
    utf8: bytes = b""


@dataclass(frozen=True)
class TokenLogprob:
    """A token's natural log-probability under the model's own distribution: before temperature, penalties, biases,
    filters and the guide. `text` has U+FFFD for a part of a character; `utf8` is exact.
    """

    token_id: int
    logprob: float
    alternatives: tuple[TokenAlternative, ...]
    text: str = ""
    utf8: bytes = b""


@dataclass(frozen=True)
class GenerationDelta:
    """A part of the answer. The text consists of whole characters."""

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...]
    index: int = 0
    """The completion that this belongs to, from 0 to n - 1."""


@dataclass(frozen=True)
class GenerationEnd:
    """Why an answer ended, and its tokens and times."""

    finish_reason: FinishReason | None
    output_tokens: int
    queue_time_seconds: float | None
    first_token_time_seconds: float | None
    total_time_seconds: float | None
    stop_sequence: str
    index: int = 0
    """The completion that ended, from 0 to n - 1."""

    @property
    def why_empty(self) -> str:
        """A sentence that explains an answer without visible text."""
        reason = {
            FinishReason.EOS: "the model ended the answer before it wrote any text",
            FinishReason.LENGTH: f"the limit of {self.output_tokens} new tokens was reached before there was any text",
            FinishReason.STOP_SEQUENCE: f"the answer began with the stop sequence {self.stop_sequence!r}",
            FinishReason.DEADLINE: "the deadline passed before there was any text",
            FinishReason.CANCELLED: "the generation was cancelled before there was any text",
        }.get(self.finish_reason or FinishReason.CANCELLED, "")
        return f"The answer is empty: {reason} (finish reason {self.finish_reason})."


@dataclass(frozen=True)
class Completion:
    """One of several completions of an input."""

    output: GenerationDelta
    end: GenerationEnd

    @property
    def text(self) -> str:
        """The text of the completion."""
        return self.output.text


@dataclass(frozen=True)
class Generation:
    """A whole answer. With `n` above 1, `output` and `end` are those of completion 0."""

    start: GenerationStart
    output: GenerationDelta
    end: GenerationEnd
    other_completions: tuple[Completion, ...] = ()
    """Completions 1 to n - 1."""

    @property
    def completions(self) -> tuple[Completion, ...]:
        """All completions by index, at least one."""
        return (Completion(self.output, self.end), *self.other_completions)

    @property
    def text(self) -> str:
        """The text of the answer."""
        return self.output.text

    @property
    def why_empty(self) -> str:
        """A sentence that explains why there is no text; empty if there is some."""
        return "" if self.text.strip() else self.end.why_empty


@dataclass(frozen=True)
class CandidateScore:
    """A candidate's natural log-probability, and its probability among the candidates."""

    candidate: str
    logprob: float
    probability: float
    num_tokens: int


@dataclass(frozen=True)
class Scores:
    """`scores` are in the order of the candidates; `best` is the index of the most probable one."""

    start: GenerationStart
    scores: tuple[CandidateScore, ...]
    best: int


@dataclass(frozen=True)
class TokenCount:
    """The tokens of an input, virtual tokens, and the positions that input and answer may take together."""

    input_tokens: int
    virtual_tokens: int
    max_positions: int
    token_ids: tuple[int, ...]


@dataclass(frozen=True)
class GenerationLimits:
    """Upper bounds of requests and of the queue of a replica."""

    max_positions: int
    max_new_tokens: int
    max_stop_sequences: int
    max_stop_sequence_chars: int
    max_logprobs: int
    max_candidates: int
    max_running: int
    max_waiting: int
    max_input_bytes: int
    max_completions: int = 1
    max_guide_bytes: int = 0
    max_listed_token_ids: int = 0


@dataclass(frozen=True)
class ModelInfo:
    """Base model, limits and default sampling of an inference replica."""

    software_version: str
    base_model: BaseModelInfo | None
    limits: GenerationLimits | None
    default_sampling: Sampling | None
    dtype: str
    device: str
    current_time: datetime | None = None
    """Of the replica's clock; None from an older replica."""
    base_models: tuple[str, ...] = ()
    """Ids of all base models that are served at this address; empty from an older replica."""


@dataclass(frozen=True)
class LoadedPrompt:
    """A version on one replica. `prefix_kv_bytes` is the memory of its keys and values, 0 while they are not loaded."""

    version: str
    digest: str
    state: LoadedState
    reason: str
    aliases: tuple[str, ...]
    num_virtual_tokens: int
    prefix_kv_bytes: int
    load_time: datetime | None
    publish_to_served_seconds: float | None
    active_requests: int
    kind: str = ""
    """As in PromptVersion."""


@dataclass(frozen=True)
class LoadedPrompts:
    """The versions that one replica knows."""

    prompts: tuple[LoadedPrompt, ...]
    revision: int
    """Store revision that this replica has seen."""
