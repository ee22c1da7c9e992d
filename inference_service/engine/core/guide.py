"""The engine's interface to guides, which `inference_service.engine.guide` implements."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol


class TokenMask(Protocol):
    """The tokens that may come next in one answer."""

    @property
    def allowed(self) -> Any:
        """A bool tensor `[vocab]` on the CPU: the tokens that continue the answer."""

    @property
    def complete(self) -> bool:
        """Whether the answer has the form of the guide, so that it may end here."""

    @property
    def only_end(self) -> bool:
        """Whether the answer is complete and can't continue."""

    @property
    def error(self) -> str:
        """Why the answer can neither continue nor end; empty otherwise."""


class GuideProgress(Protocol):
    """One answer under a guide."""

    @property
    def ready(self) -> bool:
        """Whether the mask of the next token is computed."""

    @property
    def mask(self) -> TokenMask:
        """The mask of the next token; call it only when it is ready."""

    def wait(self, timeout_seconds: float) -> bool:
        """Wait for the mask; returns whether it is computed."""

    def advance(self, token_id: int) -> None:
        """Continue with a sampled token; a worker computes the next mask."""


class Workers(Protocol):
    """Threads that compute masks."""

    def submit(self, tenant: str, function: Callable[[], None]) -> None:
        """Run the function soon, in turn with those of other tenants."""


class CompiledGuide(Protocol):
    """A compiled guide, at the beginning of an answer."""

    def begin(self, workers: Workers, tenant: str) -> GuideProgress:
        """The progress of a new answer."""
