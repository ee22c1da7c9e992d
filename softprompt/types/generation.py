"""Generation as a caller sees it, as plain frozen dataclasses. Knows no protobuf; field names are those of the protocol."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from softprompt.types.common import BaseModelInfo, Message, Sampling


@dataclass(frozen=True)
class TokenIds:
    """An input as token ids, taken as they are: no template, no special tokens added."""

    ids: tuple[int, ...]


Input = str | Sequence[Message] | TokenIds
"""Text (rendered by the prompt's template), a conversation (for prompts with a chat template), or token ids."""


class FinishReason(StrEnum):
    EOS = "EOS"
    LENGTH = "LENGTH"
    STOP_SEQUENCE = "STOP_SEQUENCE"
    DEADLINE = "DEADLINE"
    CANCELLED = "CANCELLED"


@dataclass(frozen=True)
class GenerationStart:
    """What is being generated from. `version` is empty for the bare model."""

    version: str
    digest: str
    input_tokens: int
    virtual_tokens: int
    cached_tokens: int
    seed: int
    request_id: str


@dataclass(frozen=True)
class TokenAlternative:
    token_id: int
    logprob: float
    text: str = ""
    utf8: bytes = b""


@dataclass(frozen=True)
class TokenLogprob:
    """Natural logarithm, before temperature and filters. `text` has U+FFFD in place of a part of a character; `utf8` is exact."""

    token_id: int
    logprob: float
    alternatives: tuple[TokenAlternative, ...]
    text: str = ""
    utf8: bytes = b""


@dataclass(frozen=True)
class GenerationDelta:
    """A piece of the answer; the text is whole characters."""

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...]


@dataclass(frozen=True)
class GenerationEnd:
    finish_reason: FinishReason | None
    output_tokens: int
    queue_time_seconds: float | None
    first_token_time_seconds: float | None
    total_time_seconds: float | None
    stop_sequence: str


@dataclass(frozen=True)
class Generation:
    """A whole answer."""

    start: GenerationStart
    output: GenerationDelta
    end: GenerationEnd

    @property
    def text(self) -> str:
        return self.output.text


@dataclass(frozen=True)
class CandidateScore:
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
    input_tokens: int
    virtual_tokens: int
    max_positions: int
    token_ids: tuple[int, ...]


@dataclass(frozen=True)
class GenerationLimits:
    max_positions: int
    max_new_tokens: int
    max_stop_sequences: int
    max_stop_sequence_chars: int
    max_logprobs: int
    max_candidates: int
    max_running: int
    max_waiting: int
    max_input_bytes: int


@dataclass(frozen=True)
class ModelInfo:
    software_version: str
    base_model: BaseModelInfo | None
    limits: GenerationLimits | None
    default_sampling: Sampling | None
    dtype: str
    device: str


class LoadedState(StrEnum):
    LOADED = "LOADED"
    """Its keys and values are in memory."""
    KNOWN = "KNOWN"
    """Checked; loads on its next use."""
    QUARANTINED = "QUARANTINED"
    """Refused; `reason` says why."""


@dataclass(frozen=True)
class LoadedPrompt:
    """A version as one replica sees it."""

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


@dataclass(frozen=True)
class LoadedPrompts:
    prompts: tuple[LoadedPrompt, ...]
    revision: int
    """Store revision that this replica has seen."""
