"""A request inside the engine: its tokens and how far their keys and values are computed. Pure Python; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from inference_service.engine.request import FinishReason, SamplingParams, Usage


@dataclass(eq=False)
class Sequence:
    """Positions count from the first virtual token: slot p of the row holds position p (candidates of a score share slots by branch).

    `tokens` is the input followed by what was generated; `num_computed` counts positions, virtual ones included, whose keys and
    values are in the row. A preempted sequence keeps its tokens and only loses `row` and `num_computed`.
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
    tenant: str = ""
    """Whose request it is; empty: the service's own, such as a golden replay."""
    candidates: tuple[tuple[int, ...], ...] = ()
    """Of a score request; generation requests have none."""

    row: int | None = None
    num_computed: int = 0
    num_scored: int = 0
    cached_tokens: int = 0
    num_preemptions: int = 0
    started_at: float | None = None
    first_token_at: float | None = None
    last_token_at: float | None = None
    inter_token_seconds: list[float] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    error: str = ""

    @property
    def rank(self) -> tuple[int, int]:
        """Smaller runs first: priority, then arrival."""
        return (-self.priority, self.arrival)

    @property
    def length(self) -> int:
        return self.num_virtual + len(self.tokens)

    @property
    def num_uncomputed(self) -> int:
        return self.length - self.num_computed

    @property
    def num_generated(self) -> int:
        return len(self.tokens) - self.num_input

    @property
    def generated(self) -> list[int]:
        return self.tokens[self.num_input :]

    @property
    def is_score(self) -> bool:
        return bool(self.candidates)

    @property
    def usage(self) -> Usage:
        return Usage(self.num_input, self.num_virtual, self.cached_tokens, self.num_generated)
