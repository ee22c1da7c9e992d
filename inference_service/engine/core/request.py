"""What a caller asks of the engine and what it gets back: plain frozen data. Knows nothing of models, queues or
transports.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from shared.errors import FieldViolation, InvalidInput

if TYPE_CHECKING:
    from shared.prompt.soft_prompt import SoftPrompt


@dataclass(frozen=True)
class Limits:
    """Bounds on one request; `GetModelInfo` reports them."""

    max_new_tokens: int = 8192
    max_stop_sequences: int = 16
    max_stop_sequence_chars: int = 256
    max_stop_token_ids: int = 256
    max_logprobs: int = 20
    max_temperature: float = 100.0
    max_top_k: int = 1 << 20
    max_penalty: float = 100.0
    max_seed: int = (1 << 64) - 1
    max_candidates: int = 256


LIMITS = Limits()


@dataclass(frozen=True)
class SamplingParams:
    """How the next token is chosen. The defaults sample from the model's own distribution."""

    temperature: float = 1.0
    """0 is greedy: the most likely token, whatever the other fields say."""
    top_k: int = 0
    """Only the k most likely tokens; 0 is all."""
    top_p: float = 1.0
    """The smallest set of tokens with at least this much probability (Holtzman et al. 2019)."""
    min_p: float = 0.0
    """Only tokens at least this likely relative to the most likely one."""
    repetition_penalty: float = 1.0
    """Divides (or multiplies, below zero) the logits of tokens seen in the input or generated (Keskar et al. 2019). 1
    is off.
    """
    presence_penalty: float = 0.0
    """Taken off the logits of tokens generated so far."""
    frequency_penalty: float = 0.0
    """Taken off the logits of tokens generated so far, once for each time."""
    seed: int | None = None
    """The same seed gives the same text, alone and in any batch; None draws one."""
    stop_sequences: tuple[str, ...] = ()
    """Generation ends before the first of these; it is not part of the text."""
    stop_token_ids: frozenset[int] = frozenset()
    """End of generation beside the model's own end-of-sequence tokens."""
    ignore_eos: bool = False
    max_new_tokens: int = 128
    min_new_tokens: int = 0
    """End-of-sequence and stop tokens are impossible before so many tokens."""
    num_logprobs: int | None = None
    """Alternatives beside each token's own log-probability; None: not even that."""

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0

    @property
    def penalised(self) -> bool:
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0

    def check(self, field_prefix: str = "sampling", limits: Limits = LIMITS) -> SamplingParams:
        """Itself, or InvalidInput that names every field out of range."""
        violations: list[FieldViolation] = []

        def require(name: str, ok: bool, description: str) -> None:
            if not ok:
                violations.append(FieldViolation(f"{field_prefix}.{name}" if field_prefix else name, description))

        def within(name: str, low: float, high: float, *, open_low: bool = False) -> None:
            value = float(getattr(self, name))
            ok = math.isfinite(value) and value <= high and (value > low if open_low else value >= low)
            require(
                name, ok, f"must be {'above' if open_low else 'at least'} {low:g} and at most {high:g}, is {value:g}"
            )

        within("temperature", 0.0, limits.max_temperature)
        within("top_k", 0, limits.max_top_k)
        within("top_p", 0.0, 1.0, open_low=True)
        within("min_p", 0.0, 1.0)
        within("repetition_penalty", 0.0, limits.max_penalty, open_low=True)
        within("presence_penalty", -limits.max_penalty, limits.max_penalty)
        within("frequency_penalty", -limits.max_penalty, limits.max_penalty)
        within("max_new_tokens", 1, limits.max_new_tokens)
        if self.num_logprobs is not None:
            within("num_logprobs", 0, limits.max_logprobs)
        require(
            "min_new_tokens",
            0 <= self.min_new_tokens <= self.max_new_tokens,
            f"must be from 0 to max_new_tokens ({self.max_new_tokens}), is {self.min_new_tokens}",
        )
        if self.seed is not None:
            require("seed", 0 <= self.seed <= limits.max_seed, f"must be from 0 to {limits.max_seed}, is {self.seed}")
        require(
            "stop_sequences",
            len(self.stop_sequences) <= limits.max_stop_sequences,
            f"at most {limits.max_stop_sequences} are allowed, {len(self.stop_sequences)} were given",
        )
        for index, stop in enumerate(self.stop_sequences[: limits.max_stop_sequences]):
            length = len(stop)
            require(
                f"stop_sequences[{index}]",
                1 <= length <= limits.max_stop_sequence_chars,
                f"must have 1 to {limits.max_stop_sequence_chars} characters, has {length}",
            )
        require(
            "stop_token_ids",
            len(self.stop_token_ids) <= limits.max_stop_token_ids,
            f"at most {limits.max_stop_token_ids} are allowed, {len(self.stop_token_ids)} were given",
        )
        require("stop_token_ids", all(token >= 0 for token in self.stop_token_ids), "must not be negative")
        if violations:
            raise InvalidInput(violations)
        return self


@dataclass(frozen=True)
class GenerationRequest:
    """One continuation to generate. `input_ids` come from `shared.text.template`; the soft prompt's virtual tokens are
    not among them.
    """

    request_id: str
    input_ids: tuple[int, ...]
    sampling: SamplingParams = field(default_factory=SamplingParams)
    prefix_id: str | None = None
    """A soft prompt that `load_prefix` made known; None is the bare model."""
    priority: int = 0
    """Higher runs first within a tenant; equal priorities run by arrival."""
    deadline: float | None = None
    """On the clock of `time.monotonic()`, in seconds; honoured while waiting and while running."""
    continues: bool = False
    """The answer goes on in the input's text: it keeps the space with which it begins, where the tokenizer would drop
    that from a text.
    """
    always_admitted: bool = False
    """Taken also when the queue is full: the service's own golden replays, which must not wait for the load to go."""
    tenant: str = ""
    """The request's tenant; tenants share the engine by weight. Empty: the service's own, such as a golden replay."""
    weight: float = 1.0


@dataclass(frozen=True)
class ScoreRequest:
    """How likely each candidate continuation is after the input. Candidates are token ids
    (`InputEncoder.encode_target`).
    """

    request_id: str
    input_ids: tuple[int, ...]
    candidates: tuple[tuple[int, ...], ...]
    prefix_id: str | None = None
    priority: int = 0
    deadline: float | None = None
    tenant: str = ""
    weight: float = 1.0


@dataclass(frozen=True)
class PrefixLoad:
    """Compute the keys and values of a soft prompt, and keep them under `prefix_id`; chunk by chunk beside everything
    else.

    It ends with LENGTH, or with ERROR where they are not finite; then the prefix is not known afterwards, unless it was
    before.
    """

    request_id: str
    prefix_id: str
    soft_prompt: SoftPrompt
    tenant: str = ""
    weight: float = 1.0


Request = GenerationRequest | ScoreRequest | PrefixLoad


class FinishReason(StrEnum):
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
    """Natural logarithms under the model's own distribution, before temperature and penalties. `top` is sorted, most
    likely first.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Usage:
    input_tokens: int
    virtual_tokens: int
    cached_tokens: int
    """Input tokens whose keys and values an earlier request had left (virtual tokens are not counted)."""
    generated_tokens: int


@dataclass(frozen=True)
class Timing:
    """Seconds since arrival: until first scheduled, until the first token, until now."""

    queue_seconds: float
    ttft_seconds: float | None
    elapsed_seconds: float


@dataclass(frozen=True)
class Delta:
    """What is new since the last delta of a stream. The first and the last carry `usage` and `timing`; the last a
    finish reason.
    """

    text: str = ""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    timing: Timing | None = None
    seed: int | None = None
    """The seed in use, also when the engine drew it; on the first and the last delta."""
    error: str = ""
    """With finish reason ERROR or INTERNAL: what went wrong, in words for the caller."""


@dataclass(frozen=True)
class CandidateScore:
    """`logprobs` are per token; `logprob` is their sum; `probability` is normalised over the request's candidates."""

    logprobs: tuple[float, ...]
    logprob: float
    probability: float


@dataclass(frozen=True)
class ScoreResult:
    scores: tuple[CandidateScore, ...]
    usage: Usage
    timing: Timing
