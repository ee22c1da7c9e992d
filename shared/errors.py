"""Every error that a caller can act on, independent of the transport.

    SoftPromptError
    ├── InvalidInput          a request that can never succeed; names each offending field
    ├── NotFound              the named thing does not exist
    ├── AlreadyExists         a create-only name is taken by something else
    ├── PreconditionFailed    the thing exists, but its state forbids the request
    ├── Conflict              a compare-and-set lost; carries the current value
    ├── Overloaded            a limit is reached; says when to try again
    ├── Unavailable           a required system is unavailable at the moment; try again
    ├── DeadlineExceeded      the caller's deadline passed
    ├── Cancelled             the caller or an operator cancelled the work
    ├── PermissionDenied      the caller may not do this
    ├── Unauthenticated       the caller has no valid credentials
    ├── Unimplemented         the protocol has the method, but this service does not implement it
    └── DamagedBlob           stored bytes fail a check

One table in `shared.rpc.errors` maps them to gRPC statuses. Their texts are written for callers: no paths, no
internals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from shared.location import Location, Move


class SoftPromptError(Exception):
    """Base class: `message` is safe to show to a caller; `metadata` is machine-readable context (strings)."""

    def __init__(self, message: str, **metadata: object) -> None:
        super().__init__(message)
        self.message = message
        self.metadata = {key: str(value) for key, value in metadata.items()}


@dataclass(frozen=True, init=False)
class FieldViolation:
    """What is wrong with one field of a request."""

    location: Location
    description: str
    """What is wrong, as a phrase that can follow the field's name and a colon."""

    def __init__(self, location: Location | str, description: str) -> None:
        parsed = location if isinstance(location, Location) else Location.parse(location)
        object.__setattr__(self, "location", parsed)
        object.__setattr__(self, "description", description)

    @property
    def field(self) -> str:
        """The location as a text: `spec.hyperparameters.learning_rate`, `dataset line 7 messages[1].role`."""
        return str(self.location)


class InvalidInput(SoftPromptError):
    """The request can never succeed as it is.

    Collect all violations before raising, so that callers can fix all fields in one attempt.
    """

    def __init__(self, violations: Sequence[FieldViolation]) -> None:
        self.violations = tuple(violations)
        shown = "; ".join(f"{violation.field}: {violation.description}" for violation in self.violations[:5])
        more = f" (and {len(self.violations) - 5} more)" if len(self.violations) > 5 else ""
        super().__init__(shown + more)

    @classmethod
    def of(cls, location: Location | str, description: str) -> InvalidInput:
        """The error for one violation."""
        return cls([FieldViolation(location, description)])

    def moved(self, move: Move) -> InvalidInput:
        """The same error, with the places renamed for a caller of another interface."""
        return InvalidInput([replace(found, location=move(found.location)) for found in self.violations])


class NotFound(SoftPromptError):
    """The named resource does not exist.

    `kind` is its type in words: prompt, version, alias, tuning job, dataset, base model.
    """

    def __init__(self, kind: str, name: str, hint: str = "") -> None:
        super().__init__(f"{kind} {name!r} does not exist" + (f"; {hint}" if hint else ""), kind=kind, name=name)
        self.kind, self.name, self.hint = kind, name, hint


class AlreadyExists(SoftPromptError):
    """The name to create is already used for something else."""


class PreconditionFailed(SoftPromptError):
    """The target's state or the base model forbids the request; `metadata` has the current value."""


class Conflict(SoftPromptError):
    """A compare-and-set found an unexpected value, `metadata["current"]`. Read the state again before another try."""


class Overloaded(SoftPromptError):
    """A queue or quota is full. `retry_after_seconds` is the server's estimate of when to try again."""

    def __init__(self, message: str, retry_after_seconds: float = 1.0, **metadata: object) -> None:
        super().__init__(message, **metadata)
        self.retry_after_seconds = retry_after_seconds

    @property
    def is_of_budget(self) -> bool:
        """Whether a tenant's budget is used up: then all replicas refuse, and no soon retry succeeds."""
        return "budget" in self.metadata


class Unavailable(SoftPromptError):
    """A required store, database or worker is unavailable. Nothing was changed; the same call may succeed later."""


class DeadlineExceeded(SoftPromptError):
    """The deadline passed before the work was done."""


class Cancelled(SoftPromptError):
    """The work was cancelled."""


class PermissionDenied(SoftPromptError):
    """The caller is authenticated, but may not do this."""


class Unauthenticated(SoftPromptError):
    """The caller has no valid credentials."""


class Unimplemented(SoftPromptError):
    """The protocol has the method, but this service does not implement it."""


class DamagedBlob(SoftPromptError):
    """Stored bytes fail a check (digest, header, shape, finite values). They are quarantined, never loaded."""
