"""The callers file: tenants and their shares; callers with their credentials, roles, prompts and limits.

It is JSON, and reloaded when it changes:

{"tenants": [{"name": "acme", "weight": 2, "max_priority": 10, "limits": {"active_jobs": 50},
              "dataset_roots": ["/data/acme"], "dataset_bytes": 200000000000, "ended_job_days": 30,
              "unused_dataset_days": 7,
              "budgets": [{"name": "monthly-tokens", "of": "tokens", "limit": 1e9, "per": "month", "hard": true}]}],
 "callers": [{"name": "shop", "tenant": "acme", "roles": ["generator"], "prompts": ["support-*"],
              "token_sha256": ["<64 hex>"], "certificates": ["spiffe://cluster/ns/shop/sa/web"],
              "subjects": ["web@shop"], "groups": ["shop-team"],
              "limits": {"requests_per_second": 20, "tokens_per_second": 2000, "concurrent_calls": 16}}],
 "prompt_classes": [{"name": "interactive", "prompts": ["support-*"], "objective": 0.9995}]}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from shared.caller import BUDGETED, MAX_PRIORITY, Budget, Caller, CallerLimits, PromptClass, Role, Tenant
from shared.config import ConfigError
from shared.security.json_file import NewestContent, read_json
from shared.security.tokens import find_hash
from shared.security.watched_file import WatchedFile

_Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_Name = Annotated[str, Field(min_length=1, max_length=300)]
_Pattern = Annotated[str, Field(pattern=r"^[a-z0-9*-]{1,100}$")]
_CallerName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@:/-]{0,99}$")]
_AbsolutePath = Annotated[str, Field(pattern=r"^/", max_length=4096)]
_Positive = Annotated[float, Field(gt=0, le=1e15, allow_inf_nan=False)]
_Days = Annotated[float, Field(ge=0, le=36_500, allow_inf_nan=False)]
_Count = Annotated[int, Field(ge=1, le=1_000_000)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LimitsEntry(_Strict):
    """Limits of a caller or tenant; `shared.caller.CallerLimits` documents the fields."""

    requests_per_second: _Positive | None = None
    tokens_per_second: _Positive | None = None
    concurrent_calls: _Count | None = None
    active_jobs: _Count | None = None
    dataset_bytes_per_day: _Positive | None = None

    def limits(self) -> CallerLimits:
        """The entry as a domain object."""
        return CallerLimits(**self.model_dump())


class BudgetEntry(_Strict):
    """A budget; `shared.caller.Budget` documents the fields."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
    of: str
    limit: _Positive
    per: Literal["hour", "day", "month"] = "month"
    hard: bool = False

    @field_validator("of")
    @classmethod
    def _is_counted(cls, value: str) -> str:
        if value not in BUDGETED:
            raise ValueError(f"must be one of {', '.join(BUDGETED)}")
        return value


class TenantEntry(_Strict):
    """A group of callers; `shared.caller.Tenant` documents the fields."""

    name: _CallerName
    weight: Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)] = 1.0
    max_priority: Annotated[int, Field(ge=-MAX_PRIORITY, le=MAX_PRIORITY)] = MAX_PRIORITY
    limits: LimitsEntry = LimitsEntry()
    dataset_roots: Annotated[tuple[_AbsolutePath, ...], Field(min_length=1)] | None = None
    dataset_bytes: Annotated[int, Field(ge=0, le=10**15)] | None = None
    ended_job_days: _Days | None = None
    unused_dataset_days: _Days | None = None
    budgets: Annotated[tuple[BudgetEntry, ...], Field(max_length=20)] = ()

    @field_validator("budgets")
    @classmethod
    def _names_differ(cls, value: tuple[BudgetEntry, ...]) -> tuple[BudgetEntry, ...]:
        if len({budget.name for budget in value}) != len(value):
            raise ValueError("two budgets have the same name")
        return value

    def tenant(self) -> Tenant:
        """The entry as a domain object."""
        budgets = tuple(Budget(**budget.model_dump()) for budget in self.budgets)
        return Tenant(**{**dict(self), "limits": self.limits.limits(), "budgets": budgets})


class CallerEntry(_Strict):
    """One caller, identified by any of its tokens, certificate names, OIDC subjects or groups."""

    name: _CallerName
    tenant: _CallerName | None = None
    """Name of the tenant; None: the entry forms a tenant, which all members of its groups share."""
    roles: Annotated[tuple[Role, ...], Field(min_length=1)]
    prompts: Annotated[tuple[_Pattern, ...], Field(min_length=1)] = ("*",)
    limits: LimitsEntry = LimitsEntry()
    token_sha256: tuple[_Digest, ...] = ()
    certificates: tuple[_Name, ...] = ()
    subjects: tuple[_Name, ...] = ()
    groups: tuple[_Name, ...] = ()

    def caller(self, identified_by: str, tenant: Tenant, subject: str = "") -> Caller:
        """The entry as a domain object. `subject`: the calling member of one of the entry's groups, named in audits."""
        name = f"{self.name}:{subject}"[:200] if subject else self.name
        return Caller(name, frozenset(self.roles), self.prompts, self.limits.limits(), identified_by, tenant)


class PromptClassEntry(_Strict):
    """Prompts with a common objective; `shared.caller.PromptClass` documents the fields."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,39}$")]
    prompts: Annotated[tuple[_Pattern, ...], Field(min_length=1)]
    objective: Annotated[float, Field(ge=0.5, le=0.99999, allow_inf_nan=False)] = PromptClass().objective

    def prompt_class(self) -> PromptClass:
        """The entry as a domain object."""
        return PromptClass(self.prompts, self.objective)


class _File(_Strict):
    callers: tuple[CallerEntry, ...]
    tenants: tuple[TenantEntry, ...] = ()
    prompt_classes: Annotated[tuple[PromptClassEntry, ...], Field(max_length=8)] = ()


class Directory:
    """Finds callers by their credentials."""

    def __init__(
        self,
        entries: Sequence[CallerEntry],
        tenants: Sequence[TenantEntry] = (),
        classes: Sequence[PromptClassEntry] = (),
    ) -> None:
        """Raises ConfigError if two callers have the same name or credential, a caller names an unknown tenant, or two
        prompt classes have the same name.
        """
        self.classes = {entry.name: entry.prompt_class() for entry in classes}
        """Prompt classes by name, in the file's order."""
        if len(self.classes) != len(classes):
            raise ConfigError("two prompt classes have the same name")
        self._tenants = _tenants(entries, tenants)
        self.tenants: Mapping[str, Tenant] = {tenant.name: tenant for tenant in self._tenants.values()}
        """All tenants by name, including those that callers without a tenant form."""
        self._by_token = _index(entries, "token_sha256")
        self._by_certificate = _index(entries, "certificates")
        self._by_subject = _index(entries, "subjects")
        self._by_group = _index(entries, "groups")
        names = [entry.name for entry in entries]
        if len(set(names)) != len(names):
            raise ConfigError("two callers have the same name")
        self.num_callers = len(names)

    def by_token(self, digest: str) -> Caller | None:
        """The caller whose token has this SHA-256 digest (64 hexadecimal digits)."""
        found = find_hash(digest, self._by_token)
        return None if found is None else self._caller(self._by_token[found], "token")

    def by_certificate(self, names: Sequence[str]) -> Caller | None:
        """The caller for the first name of a certificate that an entry lists."""
        return next(
            (self._caller(self._by_certificate[name], "certificate") for name in names if name in self._by_certificate),
            None,
        )

    def by_claims(self, subject: str, groups: Sequence[str]) -> Caller | None:
        """The caller for the subject's entry, or else for the entry of the first group that has one.

        An entry's limits apply to each subject of its groups; its tenant's limits apply to all of them together.
        """
        if entry := self._by_subject.get(subject):
            return self._caller(entry, "oidc")
        for group in groups:
            if entry := self._by_group.get(group):
                return self._caller(entry, "oidc", subject)
        return None

    def _caller(self, entry: CallerEntry, identified_by: str, subject: str = "") -> Caller:
        return entry.caller(identified_by, self._tenants[entry.name], subject)


class CallersFile(NewestContent[Directory]):
    """The newest valid content of the callers file."""

    def __init__(self, path: Path | str) -> None:
        """Raises ConfigError if the file is invalid at the start."""
        super().__init__(path, "callers", _read, lambda directory: directory.num_callers)

    @property
    def directory(self) -> Directory:
        """The current callers, reloaded if the file has changed."""
        return self.value


def _read(file: WatchedFile) -> Directory:
    content = read_json(file, _File)
    return Directory(content.callers, content.tenants, content.prompt_classes)


def _tenants(entries: Sequence[CallerEntry], tenants: Sequence[TenantEntry]) -> Mapping[str, Tenant]:
    """The tenant of each caller, by the caller's name."""
    declared = {tenant.name: tenant.tenant() for tenant in tenants}
    if len(declared) != len(tenants):
        raise ConfigError("two tenants have the same name")
    found = {}
    for entry in entries:
        if entry.tenant is not None and entry.tenant not in declared:
            raise ConfigError(f"{entry.name}: the tenant {entry.tenant!r} is not one of `tenants`")
        if entry.tenant is None and entry.name in declared:
            raise ConfigError(
                f"{entry.name} names no tenant, but a tenant has the same name: set it as the caller's tenant, or "
                "rename one of them"
            )
        # The members of a group share the limits of one caller: a larger group does not get more.
        alone = Tenant(entry.name, limits=entry.limits.limits() if entry.groups else CallerLimits())
        found[entry.name] = alone if entry.tenant is None else declared[entry.tenant]
    return found


def _index(entries: Sequence[CallerEntry], field: str) -> Mapping[str, CallerEntry]:
    found: dict[str, CallerEntry] = {}
    for entry in entries:
        for key in getattr(entry, field):
            if key in found:
                raise ConfigError(f"{field}: {entry.name} and {found[key].name} have the same entry")
            found[key] = entry
    return found
