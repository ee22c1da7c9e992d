"""The store as a caller sees it: only visible prompts, and times in place of revisions, from which watches continue."""

from __future__ import annotations

import pytest

from shared.caller import EVERYBODY, Caller, Role
from shared.errors import NotFound
from shared.names import PromptReference
from shared.store.memory import MemoryBackend
from shared.store.store import PromptStore
from shared.store.view import (
    commit_revision,
    shown_index,
    shown_revision,
    shown_revisions,
    store_revision,
    visible_index,
)
from tests.shared.prompt.blobs import make_blob

SUPPORT = Caller("support", frozenset({Role.VIEWER}), ("support-*",))


@pytest.fixture
def store() -> PromptStore:
    store = PromptStore(MemoryBackend())
    for number, prompt in enumerate(("acme-a", "support-a", "acme-a", "support-b", "acme-b")):
        store.publish(prompt, make_blob(prompt), job=f"tuningJobs/{number}")
    return store


def test_other_prompts_are_not_found_in_any_way(store: PromptStore) -> None:
    for index in (visible_index(store.index(), SUPPORT), shown_index(store.index(), SUPPORT)):
        assert [prompt.name for prompt in index.list_prompts()] == ["support-a", "support-b"]
        assert sorted(record.prompt for record in index.versions()) == ["support-a", "support-b"]
        assert "acme-a" not in index.prompts
        assert len(index.prompts) == 2
        assert index.current_version("acme-a", "default") is None
        for ask in (
            lambda name, index=index: index.prompt(name),
            lambda name, index=index: index.resolve(PromptReference.parse(name)),
        ):
            messages = []
            for name in ("acme-a", "acme-z", "support-z"):
                with pytest.raises(NotFound) as caught:
                    ask(name)
                messages.append(caught.value.message.replace(name, "NAME"))
            assert len(set(messages)) == 1
    assert visible_index(store.index(), EVERYBODY) is shown_index(store.index(), EVERYBODY) is store.index()


def test_times_stand_in_for_revisions_and_a_watch_goes_on_from_them(store: PromptStore) -> None:
    store.set_alias("support-a", "stable", 1)
    store.set_alias("support-a", "stable", None)
    store.set_alias("acme-a", "stable", 1)
    index, commits = store.index(), store.recent_commits()
    own = [commit for commit in commits if any(SUPPORT.may_use(op.prompt) for op in commit.ops)]
    shown = [commit_revision(commit, SUPPORT) for commit in own]
    assert shown == sorted(set(shown))
    assert min(shown) > 10**15
    for commit, revision in zip(own, shown, strict=True):
        assert store_revision(revision, index, commits, SUPPORT) == commit.revision
        assert store_revision(revision - 1, index, commits, SUPPORT) == commit.revision - 1
    assert [store_revision(revision, index, (), SUPPORT) for revision in shown] == [
        own[0].revision,
        own[1].revision,
        None,
        None,
    ]
    assert [store_revision(revision, index, commits, SUPPORT) for revision in (1, 7, 10**15, shown[-1] + 5)] == [
        None
    ] * 4
    foreign = [commit_revision(commit, SUPPORT) for commit in commits if commit not in own]
    assert [store_revision(revision, index, commits, SUPPORT) for revision in foreign] == [None] * len(foreign)
    assert shown_revisions(index, SUPPORT, [0, 1, 2, 3, 4, 5, 99]) == [
        0,
        0,
        shown[0],
        shown[0],
        shown[1],
        shown[1],
        shown[1],
    ]
    assert shown_revision(index, SUPPORT) == shown[1]
    assert shown_revisions(index, EVERYBODY, [3, 99]) == [3, 99]
    assert shown_revision(index, EVERYBODY) == index.revision == 8
    assert shown_index(index, SUPPORT).prompt("support-a").version(1).revision == shown[0]
