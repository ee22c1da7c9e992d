"""The caller of a method: name, tenant, roles, allowed prompts and limits.

`current_caller()` returns the caller of the current call. A few places need it to check permissions that don't follow
from the request alone: the prompt of a job, the prompts in a list.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase

from shared.errors import PermissionDenied
from shared.fair_turns import SERVICE

EVERY_PROMPT = ("*",)
"""Patterns that every prompt matches."""


def matches(patterns: Iterable[str], prompt: str) -> bool:
    """Whether one of the patterns, in the syntax of `fnmatch`, matches the prompt's name."""
    return any(fnmatchcase(prompt, pattern) for pattern in patterns)


class Role(StrEnum):
    """A caller's role. `shared/security/methods.py` lists the methods that each role may call."""

    VIEWER = "viewer"
    """Reads jobs, prompts, versions and the load status; changes nothing, generates nothing."""
    GENERATOR = "generator"
    """Generates and scores."""
    TUNER = "tuner"
    """Uploads data, runs and controls jobs. A version that a job publishes is served only after a publisher has moved
    an alias to it."""
    PUBLISHER = "publisher"
    """Decides what is served: moves aliases, imports and deletes versions."""
    ADMIN = "admin"
    """May call every method."""


@dataclass(frozen=True)
class CallerLimits:
    """Limits of one caller or tenant in each process; None: no limit."""

    requests_per_second: float | None = None
    tokens_per_second: float | None = None
    """Input and output tokens together, averaged over ten seconds."""
    concurrent_calls: int | None = None
    """Streams and single calls that run at the same time."""
    active_jobs: int | None = None
    """Tuning jobs that have not ended."""
    dataset_bytes_per_day: float | None = None


@dataclass(frozen=True)
class Budget:
    """A tenant's limit of use in each hour, day or month (UTC)."""

    name: str
    of: str
    """What is counted: a key of `BUDGETED`."""
    limit: float
    per: str = "month"
    hard: bool = False
    """Whether requests and jobs are refused when it is used up. A soft budget only raises metric, alert and webhook."""


BUDGETED = {
    "requests": "completions and scores that ended",
    "tokens": "input and generated tokens",
    "generated_tokens": "generated tokens",
    "jobs": "tuning jobs, from their creation",
    "worker_seconds": "seconds of jobs on workers, also of those that run",
    "stored_bytes": "bytes of the versions that jobs published",
}
"""What budgets count."""


STANDARD_CLASS = "standard"
"""The class of prompts that no other class names."""


@dataclass(frozen=True)
class PromptClass:
    """Prompts with a common objective for their requests, in metrics and alerts."""

    prompts: tuple[str, ...] = ()
    """Patterns of names, in the syntax of `fnmatch`."""
    objective: float = 0.999
    """Share of requests that should not fail by the service's fault."""


MAX_PRIORITY = 100
"""Priorities of jobs and requests are between -MAX_PRIORITY and MAX_PRIORITY."""


@dataclass(frozen=True)
class Tenant:
    """A group of callers that share limits, a fair share of workers and tokens, and their datasets.

    A caller whose entry names no tenant forms a tenant with the caller's name.
    """

    name: str
    weight: float = 1.0
    """Weight of the tenant's share of a scarce resource, relative to the other tenants that currently want it."""
    max_priority: int = MAX_PRIORITY
    """The largest priority of its jobs and requests. Priority orders work within one tenant, not between tenants."""
    limits: CallerLimits = CallerLimits()
    """Limits on all callers of the tenant together, in addition to each caller's own limits."""
    dataset_roots: tuple[str, ...] | None = None
    """Directories under which its callers may name datasets by URI; None: the service's roots."""
    dataset_bytes: int | None = None
    """Maximum total size of its stored datasets; 0: no limit; None: the service's setting."""
    ended_job_days: float | None = None
    """Ended jobs are removed after this many days; 0: never; None: the service's setting."""
    unused_dataset_days: float | None = None
    """Datasets are removed after this many days without use; 0: never; None: the service's setting."""
    budgets: tuple[Budget, ...] = ()
    """The trainer's callers file sets them; replicas learn from the store which ones are used up."""


@dataclass(frozen=True)
class Caller:
    """An authenticated caller and its permissions."""

    name: str
    roles: frozenset[Role]
    prompts: tuple[str, ...] = EVERY_PROMPT
    """Patterns of the allowed prompt names; `*` matches any characters. The bare model has an empty name, so only `*`
    allows it."""
    limits: CallerLimits = CallerLimits()
    """Limits of this caller alone."""
    identified_by: str = "nothing"
    """How the caller was authenticated: token, certificate, oidc or nothing."""
    group: Tenant | None = None
    """The tenant that the callers file names; None: the caller forms a tenant alone."""

    @property
    def tenant(self) -> Tenant:
        """The caller's tenant, never None."""
        return self.group or Tenant(self.name)

    @property
    def is_limited_to_prompts(self) -> bool:
        """Whether some prompts are not allowed."""
        return "*" not in self.prompts

    def has_role(self, *roles: Role) -> bool:
        """Whether the caller has one of the roles or is an administrator."""
        return Role.ADMIN in self.roles or not self.roles.isdisjoint(roles)

    def may_use(self, prompt: str) -> bool:
        """Whether one of the caller's patterns allows the prompt."""
        return matches(self.prompts, prompt)

    def require_prompt(self, prompt: str) -> None:
        """Raises PermissionDenied if the caller may not use the prompt."""
        if not self.may_use(prompt):
            what = f"prompt {prompt[:80]!r}" if prompt else "the bare model"
            raise PermissionDenied(
                f"{self.name} may not use {what}: allowed are {', '.join(self.prompts)}", caller=self.name
            )


EVERYBODY = Caller("anonymous", frozenset({Role.ADMIN}), group=Tenant("anonymous"))
"""The caller of every call if no callers file is configured; all work then belongs to one tenant."""

_current: ContextVar[Caller] = ContextVar("softprompt_caller", default=EVERYBODY)


def current_caller() -> Caller:
    """The caller of the call that runs in this context."""
    return _current.get()


def tenant_of_work() -> str:
    """The tenant that the current work is done for. Empty: the service's own work, or no tenants are configured."""
    caller = _current.get()
    return SERVICE if caller.group is EVERYBODY.group else caller.tenant.name


@contextmanager
def calling(caller: Caller) -> Iterator[None]:
    """Make `caller` the current caller inside the `with` block."""
    token = _current.set(caller)
    try:
        yield
    finally:
        _current.reset(token)
