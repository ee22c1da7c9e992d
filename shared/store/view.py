"""The store as a caller sees it.

Prompts that a caller may not name do not exist, in whatever way they are asked for. Whether a name is visible depends
on the name alone, so a prompt of another tenant and one that does not exist take the same time.

Revisions count the changes of all tenants. A caller who is limited to some prompts is shown the time of a change in
their place, in microseconds since the epoch: it is as good for comparing, for `expected_revision` and for going on with
a watch, and counts nothing.
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
    """The prompts that the caller may use, with the store's own revisions. They are not for the caller's eyes: see
    `shown_index`.
    """
    return replace(index, prompts=_Visible(index.prompts, caller)) if caller.is_limited_to_prompts else index


def shown_index(index: StoreIndex, caller: Caller) -> StoreIndex:
    """The prompts that the caller may use, their versions and aliases with the revisions that the caller is shown.

    The index's own revision stays the store's: `shown_revision` gives what is shown for it, and has to look at every
    prompt for that.
    """
    return replace(index, prompts=_Shown(index.prompts, caller)) if caller.is_limited_to_prompts else index


def shown_revision(index: StoreIndex, caller: Caller) -> int:
    """What the caller is shown for the revision of the index: that of the newest change that the caller may see, 0 if
    there is none.

    A removed alias and a deleted version leave nothing in the index to count.
    """
    return shown_revisions(index, caller, [index.revision])[0]


def shown_revisions(index: StoreIndex, caller: Caller, seen: Sequence[int]) -> list[int]:
    """The same for each reader of the store that has seen so much of it."""
    if not caller.is_limited_to_prompts:
        return list(seen)
    changes = sorted(_changes(_Visible(index.prompts, caller).values()))
    newest = [0, *itertools.accumulate((_microseconds(time) for _, time in changes), max)]
    return [newest[bisect.bisect_right(changes, revision, key=lambda change: change[0])] for revision in seen]


def commit_revision(commit: Commit, caller: Caller) -> int:
    """What the caller is shown for the revision of a commit."""
    return _microseconds(commit.time) if caller.is_limited_to_prompts else commit.revision


def store_revision(shown: int, index: StoreIndex, recent: Iterable[Commit], caller: Caller) -> int | None:
    """The store's revision after which a watch goes on that has seen everything up to `shown`; None if that can't be
    told any more.

    `shown` is a revision that the caller was shown, or one less: clients ask so for a commit that they may have seen
    only a part of.
    """
    if not caller.is_limited_to_prompts or shown <= 0:
        return shown
    changes = [*_changes(_Visible(index.prompts, caller).values())]
    changes += [
        (commit.revision, commit.time) for commit in recent if any(caller.may_use(op.prompt) for op in commit.ops)
    ]
    revisions = {
        _microseconds(time): revision for revision, time in sorted(changes, reverse=True)
    }  # of equal times the first change
    if shown in revisions:
        return revisions[shown]
    return revisions[shown + 1] - 1 if shown + 1 in revisions else None


class _Visible(Mapping[str, PromptRecord]):
    """Looks at names when asked, since an index may have many more prompts than one request needs."""

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
    """Revision and time of every change that left a version or an alias."""
    for prompt in prompts:
        yield from ((record.revision, record.created_at) for record in prompt.versions.values())
        yield from ((alias.revision, alias.moved_at) for alias in prompt.aliases.values())


def _microseconds(time: str) -> int:
    return (parse_timestamp(time) - _EPOCH) // timedelta(microseconds=1)
