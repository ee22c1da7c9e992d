"""The store as a caller sees it.

Prompts that a caller may not use seem not to exist in any request. Visibility depends on the name alone, so a request
takes the same time for another tenant's prompt as for a prompt that does not exist.

Revisions count the changes of all tenants. If a caller is limited to some prompts, the times of changes in microseconds
since the epoch take the place of revisions. They also work for comparisons, for `expected_revision` and to continue a
watch, and they don't reveal the number of other tenants' changes.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from shared.caller import Caller
from shared.prompt.manifest import parse_timestamp
from shared.store.commit import Commit
from shared.store.index import PromptRecord, StoreIndex

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def visible_index(index: StoreIndex, caller: Caller) -> StoreIndex:
    """The prompts that the caller may use, with the store's revisions; show callers `shown_index` instead."""
    return replace(index, prompts=_Visible(index.prompts, caller)) if caller.is_limited_to_prompts else index


def shown_index(index: StoreIndex, caller: Caller) -> StoreIndex:
    """The prompts that the caller may use; their versions and aliases have the revisions to show to the caller.

    The revision of the index remains the store's. `shown_revision` converts it, which has to read all visible prompts.
    """
    return replace(index, prompts=_Shown(index.prompts, caller)) if caller.is_limited_to_prompts else index


def shown_revision(index: StoreIndex, caller: Caller) -> int:
    """The revision of the index to show to the caller: that of the newest visible change, 0 if there is none.

    Removed aliases and deleted versions don't count, because the index doesn't contain them.
    """
    return shown_revisions(index, caller, [index.revision])[0]


def shown_revisions(index: StoreIndex, caller: Caller, seen: Sequence[int]) -> list[int]:
    """`shown_revision` for several earlier revisions of the store."""
    if not caller.is_limited_to_prompts:
        return list(seen)
    changes = sorted(_changes(_Visible(index.prompts, caller).values()))
    newest = [0, *itertools.accumulate((_microseconds(time) for _, time in changes), max)]
    return [newest[bisect.bisect_right(changes, revision, key=lambda change: change[0])] for revision in seen]


def commit_revision(commit: Commit, caller: Caller) -> int:
    """The revision of a commit to show to the caller."""
    return _microseconds(commit.time) if caller.is_limited_to_prompts else commit.revision


def store_revision(shown: int, index: StoreIndex, recent: Iterable[Commit], caller: Caller) -> int | None:
    """The store's revision after which a watch that has seen everything up to `shown` continues; None if unknown.

    `shown` is a revision that was shown to the caller, or one less: clients use the latter to get a commit again of
    which they may have seen only a part.
    """
    if not caller.is_limited_to_prompts or shown <= 0:
        return shown
    changes = [*_changes(_Visible(index.prompts, caller).values())]
    changes += [
        (commit.revision, commit.time) for commit in recent if any(caller.may_use(op.prompt) for op in commit.ops)
    ]
    # Of changes with equal times, the first one counts.
    revisions = {_microseconds(time): revision for revision, time in sorted(changes, reverse=True)}
    if shown in revisions:
        return revisions[shown]
    return revisions[shown + 1] - 1 if shown + 1 in revisions else None


class _Visible(Mapping[str, PromptRecord]):
    """Checks names on access, because an index may have many more prompts than one request needs."""

    def __init__(self, prompts: Mapping[str, PromptRecord], caller: Caller) -> None:
        self._prompts, self._caller = prompts, caller

    def __getitem__(self, name: str) -> PromptRecord:
        if not self._caller.may_use(name):
            raise KeyError(name)
        return self._prompts[name]

    def __iter__(self) -> Iterator[str]:
        return filter(self._caller.may_use, self._prompts)

    def __len__(self) -> int:
        return sum(1 for _ in self)


class _Shown(_Visible):
    def __getitem__(self, name: str) -> PromptRecord:
        prompt = super().__getitem__(name)
        versions = {
            number: replace(record, revision=_microseconds(record.created_at))
            for number, record in prompt.versions.items()
        }
        aliases = {
            alias.name: replace(alias, revision=_microseconds(alias.moved_at)) for alias in prompt.aliases.values()
        }
        return replace(prompt, versions=versions, aliases=aliases)


def _changes(prompts: Iterable[PromptRecord]) -> Iterator[tuple[int, str]]:
    """Revision and time of every change that created an existing version or moved an existing alias."""
    for prompt in prompts:
        yield from ((record.revision, record.created_at) for record in prompt.versions.values())
        yield from ((alias.revision, alias.moved_at) for alias in prompt.aliases.values())


def _microseconds(time: str) -> int:
    return (parse_timestamp(time) - _EPOCH) // timedelta(microseconds=1)
