"""The error of every `check_integrity`."""

from __future__ import annotations

from shared.errors import SoftPromptError


class IntegrityError(SoftPromptError):
    """The engine's internal bookkeeping is inconsistent: a defect of the engine, never of a request."""
