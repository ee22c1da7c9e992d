"""The progress of one answer under a guide: which tokens may come next. Masks are computed by other threads."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from inference_service.engine.guide.mask_workers import MaskWorkers

if TYPE_CHECKING:
    from llguidance import LLMatcher  # an engine without guides doesn't need the package

_MAX_ERROR_CHARS = 300


@dataclass(frozen=True)
class Mask:
    """The tokens that may come next. `allowed` is `[vocab]`, bool, on the CPU, and contains no ends of the answer."""

    allowed: torch.Tensor
    complete: bool
    """Whether the answer has the form of the guide, so that it may end here."""
    only_end: bool = False
    """Whether the answer is complete and can't continue."""
    error: str = ""
    """Why the answer can neither continue nor end."""


class CompiledGuide:
    """A guide at the beginning of an answer. Answers under the same guide share its lexer, which fills on use."""

    def __init__(self, matcher: LLMatcher, vocab_size: int, end_id: int) -> None:
        """`end_id` is the token that the matcher allows where the answer may end."""
        self._matcher, self._vocab_size, self._end_id = matcher, vocab_size, end_id
        self.mask = self._compute(matcher)
        self.failed = False
        """Whether an answer failed under this guide; it should then be compiled again instead of being reused."""

    def begin(self, workers: MaskWorkers, tenant: str) -> GuideProgress:
        """The progress of a new answer."""
        return GuideProgress(self, self._matcher.deep_copy(), workers, tenant)

    def mask_after(self, token_ids: Sequence[int]) -> Mask:
        """The mask of an answer that begins with these tokens."""
        matcher = self._matcher.deep_copy()
        matcher.consume_tokens(list(token_ids))
        return self._compute(matcher)

    def next_mask(self, matcher: LLMatcher, token_id: int) -> Mask:
        """Advance by a token and compute the mask after it."""
        matcher.consume_token(token_id)
        mask = self._compute(matcher)
        self.failed = self.failed or bool(mask.error)
        return mask

    def _compute(self, matcher: LLMatcher) -> Mask:
        bits = np.frombuffer(matcher.compute_bitmask(), np.uint8)
        allowed = np.unpackbits(bits, count=self._vocab_size, bitorder="little")
        allowed[self._end_id] = 0
        can_continue, error = bool(allowed.any()), brief(matcher.get_error())
        complete = not error and matcher.is_accepting()
        if not (complete or can_continue or error):
            error = "no token continues the answer"
        tensor = torch.from_numpy(allowed).view(torch.bool)
        return Mask(tensor, complete, complete and not can_continue, error)


class GuideProgress:
    """One answer under a guide. The engine's thread calls `advance` and `take`; a worker computes in between."""

    def __init__(self, guide: CompiledGuide, matcher: LLMatcher, workers: MaskWorkers, tenant: str) -> None:
        self._guide, self._matcher, self._workers, self._tenant = guide, matcher, workers, tenant
        self.mask = guide.mask
        """The mask of the next token, as long as it is ready."""
        self._ready = threading.Event()
        self._ready.set()

    @property
    def ready(self) -> bool:
        """Whether the mask of the next token is computed."""
        return self._ready.is_set()

    def wait(self, timeout_seconds: float) -> bool:
        """Wait for the mask; returns whether it is computed."""
        return self._ready.wait(timeout_seconds)

    def advance(self, token_id: int) -> None:
        """Continue with a sampled token; a worker computes the next mask."""
        self._ready.clear()
        self._workers.submit(self._tenant, lambda: self._compute(token_id))

    def _compute(self, token_id: int) -> None:
        try:
            self.mask = self._guide.next_mask(self._matcher, token_id)
        except Exception as error:  # a defect of the library must not leave the answer waiting
            self.mask = Mask(self.mask.allowed, complete=False, error=f"the guide failed: {type(error).__name__}")
        self._ready.set()


def brief(error: str) -> str:
    """A message of the library on one line, without the dump of its state and without advice about its settings."""
    if any(word in error for word in ("limits.", "limit ", "too many", "fuel")):
        return "the guide is too complex"
    return " ".join(error.partition("<non-verbose/>")[0].split())[:_MAX_ERROR_CHARS]
