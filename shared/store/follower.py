"""Follows the log as it grows: the current state, and the changes since a revision."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from shared import invariants
from shared.errors import DamagedBlob
from shared.invariants import Invariant
from shared.store.commit import Commit
from shared.store.identity import StoreIdentity
from shared.store.index import StoreIndex
from shared.store.log import CommitLog

CHECK_SECONDS = 60.0
"""Interval between checks whether the log was truncated or the store was replaced."""
MAX_REPLAYED = 1024
"""Maximum number of commits that `changes_since` returns."""


@dataclass(frozen=True)
class Changes:
    """The commits after a requested revision, and the resulting state."""

    commits: tuple[Commit, ...]
    index: StoreIndex
    restarted: bool = False
    """The commits are not available (the log was truncated, or the store was replaced): use `index` alone."""


class LogFollower:
    """Holds the state at the last revision read and the last commits. Thread-safe; readers of
    `index` and of recent commits never wait.

    If there is nothing new, a refresh is one read of a missing entry. A truncated log or a replaced store is looked for
    only after new entries and once per CHECK_SECONDS; new entries that name the store show that it is the same.
    """

    def __init__(self, log: CommitLog, identity: StoreIdentity) -> None:
        self._log = log
        self._identity = identity
        self._lock = threading.RLock()
        self.index = StoreIndex()
        """The state as last read."""
        self._misfit: int | None = None
        """The revision after which an entry does not fit."""
        self._recent: tuple[Commit, ...] = ()
        self._next_check = 0.0
        self.restart()

    def refresh(self, check: bool = False) -> StoreIndex:
        """Read the log to its end. `check`: also check now whether the log was truncated or the store was replaced.

        Raises DamagedBlob if an entry can't be read.
        """
        with self._lock:
            self._catch_up(check)
            return self.index

    def restart(self) -> None:
        """Drop the state, load the newest snapshot and read the log from there."""
        with self._lock:
            self._identity.load()
            index = self._log.newest_snapshot()
            self.index = index
            self._recent = ()
            self._next_check = time.monotonic() + CHECK_SECONDS
            self._catch_up(check=False)

    def committed(self, commit: Commit) -> None:
        """Apply a commit that this process has appended, unless it was already read."""
        with self._lock:
            if self.index.revision == commit.revision - 1:
                self._advance([commit], self.index.apply(commit))

    def recent_commits(self) -> tuple[Commit, ...]:
        """The last commits that were read, oldest first. Doesn't wait for a thread that reads the log."""
        return self._recent

    def find(self, txid: str) -> Commit | None:
        """A recent commit by its transaction id."""
        with self._lock:
            return next((commit for commit in reversed(self._recent) if commit.txid == txid), None)

    def changes_since(self, revision: int | None) -> Changes:
        """Refresh and return all commits after `revision` in order; None: only the current state."""
        with self._lock:
            self._catch_up(check=False)
            index, recent = self.index, self._recent
            if revision == index.revision:
                return Changes((), index)
            if revision is None or not 0 <= revision < index.revision or index.revision - revision > MAX_REPLAYED:
                return Changes((), index, restarted=True)
            if recent and recent[0].revision <= revision + 1:
                return Changes(tuple(commit for commit in recent if commit.revision > revision), index)
        return self._replay(revision, index)

    def _catch_up(self, check: bool) -> None:
        fresh: list[Commit] = []
        index, commit, problem = self.index, None, None
        try:
            while (commit := self._log.read(index.revision + 1)) is not None:
                index = index.apply(commit)
                fresh.append(commit)
        except DamagedBlob as error:
            problem = error
        now = time.monotonic()
        if fresh or problem or check or now >= self._next_check:
            is_named = bool(fresh) and all(commit.store == self._identity.id for commit in fresh)
            if not (is_named or self._identity.is_same()) or self._log.horizon() > self.index.revision:
                self.restart()
                return
            self._next_check = now + CHECK_SECONDS
        if fresh:
            self._advance(fresh, index)
        if problem:
            does_not_fit = commit is not None and commit.revision > index.revision  # else it was not read
            if does_not_fit and self._misfit != index.revision:
                self._misfit = index.revision
                invariants.check(False, Invariant.LOG_FITS, revision=index.revision, why=problem.message)
            raise problem

    def _advance(self, fresh: Sequence[Commit], index: StoreIndex) -> None:
        self._recent = (*self._recent, *fresh)[-MAX_REPLAYED:]
        self.index = index

    def _replay(self, revision: int, index: StoreIndex) -> Changes:
        commits: list[Commit] = []
        for number in range(revision + 1, index.revision + 1):
            commit = self._log.read(number)
            if commit is None:
                return Changes((), index, restarted=True)
            commits.append(commit)
        if self._log.horizon() > revision:
            return Changes((), index, restarted=True)
        return Changes(tuple(commits), index)
