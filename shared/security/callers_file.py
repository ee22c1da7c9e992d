"""The file that says who may call: names, how each is recognised, roles, prompts and limits. JSON, read anew when it changes.

{"callers": [{"name": "shop", "roles": ["generator"], "prompts": ["support-*"], "token_sha256": ["<64 hex>"],
              "certificates": ["spiffe://cluster/ns/shop/sa/web"], "subjects": ["web@shop"], "groups": ["shop-team"],
              "limits": {"requests_per_second": 20, "tokens_per_second": 2000, "concurrent_calls": 16}}]}
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shared.config import ConfigError
from shared.security.caller import Caller, CallerLimits, Role
from shared.security.tokens import find_hash
from shared.security.watched_file import WatchedFile

log = logging.getLogger(__name__)

_LOOK_SECONDS = 1.0
_Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_Name = Annotated[str, Field(min_length=1, max_length=300)]
_Pattern = Annotated[str, Field(pattern=r"^[a-z0-9*-]{1,100}$")]
_Positive = Annotated[float, Field(gt=0, le=1e15, allow_inf_nan=False)]
_Count = Annotated[int, Field(ge=1, le=1_000_000)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LimitsEntry(_Strict):
    requests_per_second: _Positive | None = None
    tokens_per_second: _Positive | None = None
    concurrent_calls: _Count | None = None
    active_jobs: _Count | None = None
    dataset_bytes_per_day: _Positive | None = None


class CallerEntry(_Strict):
    """One caller; recognised by any of its tokens, certificate names, OIDC subjects or groups."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@:/-]{0,99}$")]
    roles: Annotated[tuple[Role, ...], Field(min_length=1)]
    prompts: Annotated[tuple[_Pattern, ...], Field(min_length=1)] = ("*",)
    limits: LimitsEntry = LimitsEntry()
    token_sha256: tuple[_Digest, ...] = ()
    certificates: tuple[_Name, ...] = ()
    subjects: tuple[_Name, ...] = ()
    groups: tuple[_Name, ...] = ()

    def caller(self, identified_by: str) -> Caller:
        limits = CallerLimits(**self.limits.model_dump())
        return Caller(self.name, frozenset(self.roles), self.prompts, limits, identified_by)


class _File(_Strict):
    callers: tuple[CallerEntry, ...]


class Directory:
    """Callers by what they present. Raises ConfigError where two callers claim the same."""

    def __init__(self, entries: Sequence[CallerEntry]) -> None:
        self._by_token = _index(entries, "token_sha256")
        self._by_certificate = _index(entries, "certificates")
        self._by_subject = _index(entries, "subjects")
        self._by_group = _index(entries, "groups")
        names = [entry.name for entry in entries]
        if len(set(names)) != len(names):
            raise ConfigError("two callers have the same name")
        self.num_callers = len(names)

    def by_token(self, digest: str) -> Caller | None:
        found = find_hash(digest, self._by_token)
        return None if found is None else self._by_token[found].caller("token")

    def by_certificate(self, names: Sequence[str]) -> Caller | None:
        return next((self._by_certificate[name].caller("certificate") for name in names if name in self._by_certificate), None)

    def by_claims(self, subject: str, groups: Sequence[str]) -> Caller | None:
        """A subject's own entry, else that of the first of its groups that has one; then each subject counts for itself."""
        if entry := self._by_subject.get(subject):
            return entry.caller("oidc")
        for group in groups:
            if entry := self._by_group.get(group):
                caller = entry.caller("oidc")
                return replace(caller, name=f"{caller.name}:{subject}"[:200])
        return None


class CallersFile:
    """The newest readable content. A file that is broken or gone changes nothing: what was read before holds, and the log says so."""

    def __init__(self, path: Path | str) -> None:
        """Raises ConfigError if it can't be used at the start."""
        self._file = WatchedFile(path)
        self._looked = time.monotonic()
        self._directory = self._read()

    @property
    def directory(self) -> Directory:
        now = time.monotonic()
        if now - self._looked >= _LOOK_SECONDS:
            self._looked = now
            if self._file.changed():
                self._reload()
        return self._directory

    def _reload(self) -> None:
        try:
            self._directory = self._read()
        except ConfigError as error:
            log.error("the callers file can't be used; the one before still holds: %s", error)
            return
        log.info("callers file read again", extra={"fields": {"callers": self._directory.num_callers}})

    def _read(self) -> Directory:
        try:
            return Directory(_File.model_validate_json(self._file.read()).callers)
        except OSError as error:
            raise ConfigError(f"{self._file.path}: {error.strerror}") from error
        except ValidationError as error:
            problems = [f"{'.'.join(map(str, detail['loc']))}: {detail['msg']}" for detail in error.errors(include_input=False)]
            raise ConfigError(f"{self._file.path}: " + "; ".join(problems[:5])) from None  # its input may be a token


def _index(entries: Sequence[CallerEntry], field: str) -> Mapping[str, CallerEntry]:
    found: dict[str, CallerEntry] = {}
    for entry in entries:
        for key in getattr(entry, field):
            if key in found:
                raise ConfigError(f"{field}: {entry.name} and {found[key].name} claim the same")
            found[key] = entry
    return found
