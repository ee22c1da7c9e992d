"""A request inside the engine: its tokens and its progress. Pure Python; imports no torch."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field

from inference_service.engine.core.request import (
    FinishReason,
    GenerationRequest,
    PrefixLoad,
    Request,
    ScoreRequest,
    TokenUsage,
)
from inference_service.engine.core.token_counts import TokenCounts
from inference_service.engine.core.token_hashes import HashedTokens
from shared.values.sampling import SamplingParams


@dataclass(eq=False)
class RunningRequest(HashedTokens):
    """A request that waits or runs.

    Positions count from the first virtual token: slot p of the row holds position p (candidates of a score share slots
    by branch). `tokens` is the input, followed by the generated tokens or by the scored part of the current candidate.
    `num_computed` counts positions, virtual ones included, whose keys and values are in the row. A preempted sequence
    keeps its tokens and loses only `row` and `num_computed`.
    """

    request_id: str
    tokens: list[int]
    num_input: int
    sampling: SamplingParams
    seed: int
    prefix_id: str | None = None
    num_virtual: int = 0
    priority: int = 0
    deadline: float | None = None
    arrived_at: float = 0.0
    arrival: int = 0
    candidates: tuple[tuple[int, ...], ...] = ()
    """Candidates of a score request; empty for a generation request."""
    tenant: str = ""
    """The tenant that is charged; empty for the service itself (loads of versions, golden replays)."""
    weight: float = 1.0
    """The tenant's weight in fair sharing."""
    caller: str = ""
    group: str = ""
    """The completions of one input have the same group."""
    is_load: bool = False
    """Whether this computes a soft prompt's keys and values. Such a sequence has virtual tokens only."""

    paused: bool = False
    """Whether the mask of its next token was late: it gets no positions until the mask is computed."""
    row: int | None = None
    num_computed: int = 0
    num_scored: int = 0
    num_input_scored: int = 0
    """Input tokens after the first whose log-probabilities are known, if the request wants them."""
    cached_tokens: int = 0
    num_preemptions: int = 0
    started_step: int = 0
    """The step in which the sequence got its row."""
    planned_step: int = 0
    """The last step with a chunk of this sequence."""
    num_passed_over: int = 0
    """Requests of other tenants that were admitted while this one was first in line but lacked room."""
    started_at: float | None = None
    first_token_at: float | None = None
    last_token_at: float | None = None
    inter_token_seconds: list[float] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    error: str = ""
    counts: TokenCounts = field(default_factory=TokenCounts)
    """Counts of `tokens` for penalties; updated only if there are any."""

    def drop_partial(self) -> None:
        """Remove the scored tokens of the current candidate."""
        self.hashes.forget(self.num_input)
        del self.tokens[self.num_input :]

    @property
    def rank(self) -> tuple[int, int]:
        """Sort key, the smallest runs first: higher priority, then earlier arrival."""
        return (-self.priority, self.arrival)

    @property
    def length(self) -> int:
        """Virtual tokens and `tokens` together."""
        return self.num_virtual + len(self.tokens)

    @property
    def num_uncomputed(self) -> int:
        """Positions whose keys and values are not in the row."""
        return self.length - self.num_computed

    @property
    def num_left(self) -> int:
        """Positions to compute until the next token or, for a score, until the end."""
        if not self.is_score:
            return self.num_uncomputed
        candidates = sum(len(candidate) for candidate in self.candidates[self.num_scored :])
        return max(1, self.num_uncomputed) + candidates - self.num_partial

    @property
    def cost(self) -> int:
        """Tokens of the request, candidates and generated tokens included."""
        return len(self.tokens) + sum(map(len, self.candidates))

    @property
    def num_generated(self) -> int:
        """Generated tokens; 0 for a score."""
        return 0 if self.is_score else len(self.tokens) - self.num_input

    @property
    def num_partial(self) -> int:
        """Scored tokens of the current candidate."""
        return len(self.tokens) - self.num_input if self.is_score else 0

    @property
    def generated(self) -> list[int]:
        """Ids of the generated tokens."""
        return self.tokens[self.num_input :]

    @property
    def num_input_unscored(self) -> int:
        """Input tokens after the first whose log-probabilities are still to be computed."""
        return 0 if self.sampling.num_input_logprobs is None else self.num_input - 1 - self.num_input_scored

    @property
    def num_reusable(self) -> int:
        """The number of first tokens whose keys and values may come from another row.

        The last token is always computed because its logits are needed, and so are those of tokens before an input
        token whose log-probability is needed.
        """
        return self.num_input_scored if self.num_input_unscored else len(self.tokens) - 1

    @property
    def is_score(self) -> bool:
        """Whether the request scores candidates instead of generating."""
        return bool(self.candidates)

    @property
    def usage(self) -> TokenUsage:
        """Token counts so far."""
        candidates = sum(map(len, self.candidates))
        return TokenUsage(self.num_input, self.num_virtual, self.cached_tokens, self.num_generated, candidates)


def sequence_of(request: Request, num_virtual: int, arrival: int, now: float) -> RunningRequest:
    """Create a sequence for a request under a prefix of `num_virtual` tokens.

    `arrival` numbers the requests; `now` is in seconds. Draws a seed if the request has none.
    """
    sampling = request.sampling if isinstance(request, GenerationRequest) else SamplingParams(temperature=0.0)
    input_ids = () if isinstance(request, PrefixLoad) else request.input_ids
    return RunningRequest(
        request_id=request.request_id,
        tokens=list(input_ids),
        num_input=len(input_ids),
        sampling=sampling,
        seed=secrets.randbits(63) if sampling.seed is None else sampling.seed,
        prefix_id=request.prefix_id,
        num_virtual=num_virtual,
        priority=request.priority,
        deadline=request.deadline,
        arrived_at=now,
        arrival=arrival,
        candidates=request.candidates if isinstance(request, ScoreRequest) else (),
        tenant=request.tenant,
        weight=request.weight,
        caller=request.caller,
        group=request.group if isinstance(request, GenerationRequest) else "",
        is_load=isinstance(request, PrefixLoad),
    )
