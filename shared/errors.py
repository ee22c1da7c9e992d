"""Every error that a caller can act on, independent of the transport.

    SoftPromptError
    ├── InvalidInput          a request that can never succeed; names each offending field
    ├── NotFound              the named thing does not exist
    ├── AlreadyExists         a create-only name is taken by something else
    ├── PreconditionFailed    the thing exists, but its state forbids the request
    ├── Conflict              a compare-and-set lost; carries the current value
    ├── Overloaded            a bound is reached; says when to try again
    ├── Unavailable           a part that this needs is away for now; try again
    ├── DeadlineExceeded      the caller's deadline passed
    ├── Cancelled             the caller or an operator withdrew it
    ├── PermissionDenied      the caller may not do this
    ├── Unauthenticated       the caller did not say who it is
    ├── Unimplemented         the protocol has it, this service does not answer it
    └── DamagedBlob           stored bytes that are not what they claim to be

`shared.rpc.errors` maps them to gRPC statuses, in one table. Their text is written for the caller: no paths, no
internals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class SoftPromptError(Exception):
    """The root: `message` is safe to show to a caller, `metadata` is machine-readable context (strings)."""

    def __init__(self, message: str, **metadata: object) -> None:
        super().__init__(message)
        self.message = message
        self.metadata = {key: str(value) for key, value in metadata.items()}


@dataclass(frozen=True)
class FieldViolation:
    """One offending field (`spec.optimizer.learning_rate`, `dataset.examples[3].output`, `line 7`) and what is wrong
    with it.
    """

    field: str
    description: str


class InvalidInput(SoftPromptError):
    """The request can never succeed as it is.

    Collect all violations before raising, so that a user mends a request once and not once a field.
    """

    def __init__(self, violations: Sequence[FieldViolation]) -> None:
        self.violations = tuple(violations)
        shown = "; ".join(f"{violation.field}: {violation.description}" for violation in self.violations[:5])
        more = f" (and {len(self.violations) - 5} more)" if len(self.violations) > 5 else ""
        super().__init__(shown + more)

    @classmethod
    def of(cls, field: str, description: str) -> InvalidInput:
        return cls([FieldViolation(field, description)])


class NotFound(SoftPromptError):
    """`kind` is a word of the domain (prompt, version, alias, tuning job, dataset, base model)."""

    def __init__(self, kind: str, name: str, hint: str = "") -> None:
        super().__init__(f"{kind} {name!r} does not exist" + (f"; {hint}" if hint else ""), kind=kind, name=name)
        self.kind, self.name, self.hint = kind, name, hint


class AlreadyExists(SoftPromptError):
    """Creating under a name that is taken by something else."""


class PreconditionFailed(SoftPromptError):
    """The target's state, or the base model, forbids the request; metadata carries the current value."""


class Conflict(SoftPromptError):
    """A compare-and-set found another value than expected; metadata carries `current`. Read again, decide again."""


class Overloaded(SoftPromptError):
    """A queue or quota is full. `retry_after_seconds` is the server's honest guess."""

    def __init__(self, message: str, retry_after_seconds: float = 1.0, **metadata: object) -> None:
        super().__init__(message, **metadata)
        self.retry_after_seconds = retry_after_seconds


class Unavailable(SoftPromptError):
    """A store, database or worker that this needs is away; nothing was changed; the same call may go through later."""


class DeadlineExceeded(SoftPromptError):
    """The deadline passed before the work was done."""


class Cancelled(SoftPromptError):
    """The work was withdrawn."""


class PermissionDenied(SoftPromptError):
    """The caller is known and may not do this."""


class Unauthenticated(SoftPromptError):
    """The caller presented no valid identity."""


class Unimplemented(SoftPromptError):
    """The protocol has the method, and this service does not answer it."""


class DamagedBlob(SoftPromptError):
    """Stored bytes fail a check (digest, header, shape, finiteness). They are quarantined, never loaded."""
