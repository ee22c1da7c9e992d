"""Who is calling: a name, a tenant, roles, the prompts that they may touch, and how much they may do.

`current_caller()` is the caller of the call that runs now, for the few places that must ask again once they know more
than the request said: which prompt a job is for, which prompts a list shows.
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
    return any(fnmatchcase(prompt, pattern) for pattern in patterns)


class Role(StrEnum):
    """What somebody is there for. `methods.py` says which methods each may call."""

    VIEWER = "viewer"
    """Looks at jobs, prompts, versions and what is loaded; changes nothing, generates nothing."""
    GENERATOR = "generator"
    """Generates and scores."""
    TUNER = "tuner"
    """Uploads data, runs and steers jobs; what they publish serves nobody until a publisher moves an alias to it."""
    PUBLISHER = "publisher"
    """Decides what is served: moves aliases, imports and deletes versions."""
    ADMIN = "admin"
    """Everything."""


@dataclass(frozen=True)
class CallerLimits:
    """Most of everything for one caller, in each process; None: no limit of their own."""

    requests_per_second: float | None = None
    tokens_per_second: float | None = None
    """Input and output tokens together, averaged over ten seconds."""
    concurrent_calls: int | None = None
    """Streams and single calls that run at the same time."""
    active_jobs: int | None = None
    """Tuning jobs that have not ended."""
    dataset_bytes_per_day: float | None = None


MAX_PRIORITY = 100
"""Priorities of jobs and requests lie between minus this and this."""


@dataclass(frozen=True)
class Tenant:
    """A group of callers that share limits, a fair share of workers and tokens, and their datasets.

    A caller whose entry names no tenant is a tenant by itself, under the caller's own name.
    """

    name: str
    weight: float = 1.0
    """Its share of whatever is scarce, beside the other tenants that want some at that time."""
    max_priority: int = MAX_PRIORITY
    """The largest priority of its jobs and requests. Priority orders the work of one tenant, never that of two."""
    limits: CallerLimits = CallerLimits()
    """For all its callers together, beside each caller's own."""
    dataset_roots: tuple[str, ...] | None = None
    """Directories under which its callers may name datasets by URI; None: the service's own roots."""
    dataset_bytes: int | None = None
    """Most bytes of its stored datasets together; 0: no limit; None: the service's setting. So are the two below."""
    ended_job_days: float | None = None
    """Its ended jobs are removed after that; 0: kept."""
    unused_dataset_days: float | None = None
    """Its datasets are removed after that many days without use; 0: kept."""


@dataclass(frozen=True)
class Caller:
    name: str
    roles: frozenset[Role]
    prompts: tuple[str, ...] = EVERY_PROMPT
    """Patterns of prompt names; `*` stands for any characters. The bare model has the empty name: only `*` allows it.
    """
    limits: CallerLimits = CallerLimits()
    """For this caller alone."""
    identified_by: str = "nothing"
    """token, certificate, oidc or nothing."""
    group: Tenant | None = None
    """The tenant that the callers file names; None: the caller is one by itself."""

    @property
    def tenant(self) -> Tenant:
        return self.group or Tenant(self.name)

    @property
    def is_limited_to_prompts(self) -> bool:
        return "*" not in self.prompts

    def has_role(self, *roles: Role) -> bool:
        return Role.ADMIN in self.roles or not self.roles.isdisjoint(roles)

    def may_use(self, prompt: str) -> bool:
        return matches(self.prompts, prompt)

    def require_prompt(self, prompt: str) -> None:
        """Raises PermissionDenied."""
        if not self.may_use(prompt):
            what = f"prompt {prompt[:80]!r}" if prompt else "the bare model"
            raise PermissionDenied(
                f"{self.name} may not use {what}: allowed are {', '.join(self.prompts)}", caller=self.name
            )


EVERYBODY = Caller("anonymous", frozenset({Role.ADMIN}), group=Tenant("anonymous"))
"""The caller where no callers file is configured: one tenant holds everything."""

_current: ContextVar[Caller] = ContextVar("softprompt_caller", default=EVERYBODY)


def current_caller() -> Caller:
    return _current.get()


def tenant_of_work() -> str:
    """Name of the tenant that the current work is done for; empty for the service itself, and where no tenants are
    configured.
    """
    caller = _current.get()
    return SERVICE if caller.group is EVERYBODY.group else caller.tenant.name


@contextmanager
def calling(caller: Caller) -> Iterator[None]:
    """Within it, `caller` is the current one."""
    token = _current.set(caller)
    try:
        yield
    finally:
        _current.reset(token)
