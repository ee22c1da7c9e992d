"""What a caller asks of the engine and gets back: plain frozen data, without models, queues or transports."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from shared.values.sampling import SamplingParams

if TYPE_CHECKING:
    from inference_service.engine.guide.matcher import CompiledGuide
    from shared.prompt.prefix import Prefix


@dataclass(frozen=True, kw_only=True)
class Account:
    """Which tenant a request is charged to, and when it runs."""

    priority: int = 0
    """Higher runs first within a tenant; equal priorities run by arrival."""
    deadline: float | None = None
    """On the clock of `time.monotonic()`, in seconds; honoured while waiting and while running."""
    tenant: str = ""
    """The request's tenant; tenants share the engine by weight. Empty: the service's own, such as a golden replay."""
    weight: float = 1.0
    caller: str = ""
    """Name of the caller, for statistics."""


@dataclass(frozen=True)
class GenerationRequest(Account):
    """One continuation to generate. `input_ids` (`shared.text.template`) are without the prompt's virtual tokens."""

    request_id: str
    input_ids: tuple[int, ...]
    sampling: SamplingParams = field(default_factory=SamplingParams)
    prefix_id: str | None = None
    """A soft prompt that `load_prefix` made known; None is the bare model."""
    continues: bool = False
    """The answer goes on in the input's text, and keeps a first space that the tokenizer would drop from a text."""
    exact: bool = False
    """The answer keeps that space also where it begins a text."""
    always_admitted: bool = False
    """Taken also when the queue is full: the service's own golden replays, which must not wait for the load to go."""
    guide: CompiledGuide | None = None
    """The compiled `sampling.guide`."""
    group: str = ""
    """The completions of one input have the same group: the first one computes the input, the others start from its
    keys and values. The engine ignores `sampling.n`.
    """


@dataclass(frozen=True)
class ScoreRequest(Account):
    """How likely each candidate is after the input. Candidates are token ids (`InputEncoder.encode_target`)."""

    request_id: str
    input_ids: tuple[int, ...]
    candidates: tuple[tuple[int, ...], ...]
    prefix_id: str | None = None


@dataclass(frozen=True)
class PrefixLoad(Account):
    """Compute the keys and values of a prefix, and keep them under `prefix_id`; chunk by chunk beside everything
    else.

    It ends with LENGTH, or with ERROR where they are not finite; then the prefix is not known afterwards, unless it was
    before.
    """

    request_id: str
    prefix_id: str
    prefix: Prefix


Request = GenerationRequest | ScoreRequest | PrefixLoad


class FinishReason(StrEnum):
    """Why a generation ended."""

    EOS = "EOS"
    LENGTH = "LENGTH"
    STOP_SEQUENCE = "STOP_SEQUENCE"
    DEADLINE = "DEADLINE"
    CANCELLED = "CANCELLED"
    ERROR = "ERROR"
    """The model's numbers are not finite for this input and soft prompt."""
    INTERNAL = "INTERNAL"
    """The engine could not compute it: a defect, or a device that fails."""


@dataclass(frozen=True)
class TokenLogprob:
    """Natural logarithms under the model's own distribution, before temperature and penalties. `top`: best first."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class TokenUsage:
    """Tokens of one request."""

    input_tokens: int
    virtual_tokens: int
    cached_tokens: int
    """Input tokens whose keys and values an earlier request had left (virtual tokens are not counted)."""
    generated_tokens: int
    candidate_tokens: int = 0
    """Tokens of a score's candidates; not part of the input tokens."""

    @property
    def read_tokens(self) -> int:
        """What metrics and budgets count as input: a candidate is read like the input before it."""
        return self.input_tokens + self.candidate_tokens


@dataclass(frozen=True)
class Timing:
    """Seconds since arrival: until first scheduled, until the first token, until now."""

    queue_seconds: float
    ttft_seconds: float | None
    elapsed_seconds: float


@dataclass(frozen=True)
class Delta:
    """What is new in a stream. The first and the last delta carry `usage` and `timing`; the last a finish reason."""

    text: str = ""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    usage: TokenUsage | None = None
    timing: Timing | None = None
    seed: int | None = None
    """The seed in use, also when the engine drew it; on the first and the last delta."""
    input_logprobs: tuple[TokenLogprob, ...] = ()
    """With `num_input_logprobs`, on the first delta: the log-probabilities of all input tokens except the first."""
    index: int = 0
    """The completion that this belongs to; set by the service."""
    error: str = ""
    """With finish reason ERROR or INTERNAL: what went wrong, in words for the caller."""
    stop_sequence: str = ""
    """With finish reason STOP_SEQUENCE: the one that was found."""


@dataclass(frozen=True)
class CandidateScore:
    """`logprobs` are per token; `logprob` is their sum; `probability` is normalised over the request's candidates."""

    logprobs: tuple[float, ...]
    logprob: float
    probability: float


@dataclass(frozen=True)
class ScoreResult:
    """The candidates' scores, in the order of the request."""

    scores: tuple[CandidateScore, ...]
    usage: TokenUsage
    timing: Timing
